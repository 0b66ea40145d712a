/* Shared by the convolutions' kernels. They are in single precision, for processors with AVX2 and FMA.
   With a compiler that cannot compile for these, HAS_CONV_KERNELS is 0. */

#ifndef CONV_H
#define CONV_H

#include "common.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_CONV_KERNELS 1
#else
#define HAS_CONV_KERNELS 0
#endif

/* The sizes of a convolution: of its bottom, its top, its windows. native.py fills it in this order. */
typedef struct {
    int64_t num, height, width, channels, top_height, top_width, outputs;
    int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
} Conv;

#if HAS_CONV_KERNELS

#include <cpuid.h>

#define AVX2 __attribute__((target("avx2,fma")))
#define INLINE_AVX2 AVX2 static inline __attribute__((always_inline))

enum { MAX_SIDE = 6, VECTOR = 8 };

typedef float Vector __attribute__((vector_size(4 * VECTOR), aligned(4)));

INLINE_AVX2 Vector load(const float *x)
{
    return *(const Vector *)x;
}

INLINE_AVX2 void store(float *x, Vector y)
{
    *(Vector *)x = y;
}

/* sums[k] += x[k x_step] y, for k < side and the first `vectors` of y. */
INLINE_AVX2 void add_outer(const int side, const int vectors, const float *x, int64_t x_step, const float *y,
                           Vector sums[MAX_SIDE][2])
{
    Vector y_vectors[2];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++)
        y_vectors[v] = load(y + VECTOR * v);
#pragma GCC unroll 6
    for (int k = 0; k < side; k++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            sums[k][v] += x[k * x_step] * y_vectors[v];
}

/* The sums in registers: 1 to MAX_SIDE times 1 or 2 vectors. FOR_EACH_SIZE expands a macro that defines a
   function for each size; SIZE_TABLE is the table of these functions, [vectors - 1][side - 1]. */
#define FOR_EACH_SIZE(make)                                                                                    \
    make(1, 1) make(2, 1) make(3, 1) make(4, 1) make(5, 1) make(6, 1)                                          \
    make(1, 2) make(2, 2) make(3, 2) make(4, 2) make(5, 2) make(6, 2)
#define SIZE_TABLE(name)                                                                                       \
    {                                                                                                          \
        {name##_1_1, name##_2_1, name##_3_1, name##_4_1, name##_5_1, name##_6_1},                              \
        {name##_1_2, name##_2_2, name##_3_2, name##_4_2, name##_5_2, name##_6_2},                              \
    }

#endif

#endif
