/* Vectors of VECTOR numbers, and products of two matrices whose sums stay in registers: 1 to MAX_SIDE times 1
   or 2 vectors. Processors with vectors of 8 numbers have 16 registers, those with vectors of 16 have 32. A
   template: kernels.c defines VECTOR, MAX_SIDE, NAME and TARGET. */

#if !defined(VECTOR) || !defined(MAX_SIDE) || !defined(NAME) || !defined(TARGET)
#error "a template: see kernels.c"
#endif

#include "conv.h"

/* FOR_EACH_SIZE expands a macro that defines a function for each size; SIZE_TABLE is the table of these
   functions, [vectors - 1][side - 1]. */
#undef FOR_EACH_SIZE
#undef SIZE_TABLE
#if MAX_SIDE == 6
#define FOR_EACH_SIZE(make) SIX_SIDES(make, 1) SIX_SIDES(make, 2)
#define SIZE_TABLE(name)                                                                                       \
    {                                                                                                          \
        {SIX_NAMES(name, 1)},                                                                                  \
        {                                                                                                      \
            SIX_NAMES(name, 2)                                                                                 \
        }                                                                                                      \
    }
#elif MAX_SIDE == 12
#define FOR_EACH_SIZE(make) TWELVE_SIDES(make, 1) TWELVE_SIDES(make, 2)
#define SIZE_TABLE(name)                                                                                       \
    {                                                                                                          \
        {TWELVE_NAMES(name, 1)},                                                                               \
        {                                                                                                      \
            TWELVE_NAMES(name, 2)                                                                              \
        }                                                                                                      \
    }
#else
#error "MAX_SIDE is 6 or 12"
#endif

typedef float NAME(Vector) __attribute__((vector_size(4 * VECTOR), aligned(4)));

/* sums[k] += x[k x_step] y, for k < side and the first `vectors` of y. */
INLINE_TARGET void NAME(add_outer)(const int side, const int vectors, const float *x, int64_t x_step,
                                   const float *y, VEC sums[MAX_SIDE][2])
{
    VEC y_vectors[2];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++)
        y_vectors[v] = LOAD_VEC(y + VECTOR * v);
#pragma GCC unroll 12
    for (int k = 0; k < side; k++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            sums[k][v] += x[k * x_step] * y_vectors[v];
}
