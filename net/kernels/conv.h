/* What the convolutions' kernels share. They are in single precision, for processors with AVX2 and FMA. */

typedef struct {
    int64_t num, height, width, channels, top_height, top_width, outputs;
    int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
} Conv;

#if defined(__x86_64__) && defined(__GNUC__)

#include <cpuid.h>

#define AVX2 __attribute__((target("avx2,fma")))
#define INLINE_AVX2 AVX2 static inline __attribute__((always_inline))

enum { SIDE = 6, VECTOR = 8 };

typedef float Vector __attribute__((vector_size(4 * VECTOR), aligned(4)));

INLINE_AVX2 Vector get(const float *x)
{
    return *(const Vector *)x;
}

INLINE_AVX2 void put(float *x, Vector y)
{
    *(Vector *)x = y;
}

/* sums[k] += x[k x_step] y, for k < side and the first `vectors` of y. */
INLINE_AVX2 void add_outer(const int side, const int vectors, const float *x, int64_t x_step, const float *y,
                           Vector sums[SIDE][2])
{
    Vector of_y[2];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++)
        of_y[v] = get(y + VECTOR * v);
#pragma GCC unroll 6
    for (int k = 0; k < side; k++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            sums[k][v] += x[k * x_step] * of_y[v];
}

/* One function, and its place in a table, for each number of sums that stay in registers. */
#define EACH_SIZE(make)                                                                                        \
    make(1, 1) make(2, 1) make(3, 1) make(4, 1) make(5, 1) make(6, 1)                                          \
    make(1, 2) make(2, 2) make(3, 2) make(4, 2) make(5, 2) make(6, 2)
#define TABLE_OF(name)                                                                                         \
    {                                                                                                          \
        {name##_1_1, name##_2_1, name##_3_1, name##_4_1, name##_5_1, name##_6_1},                              \
        {name##_1_2, name##_2_2, name##_3_2, name##_4_2, name##_5_2, name##_6_2},                              \
    }

int imae_conv_possible(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

/* Whether this processor can, and has no AVX-512, for which oneDNN's own kernels are fast. */
int imae_conv_weight_wanted(void)
{
    return imae_conv_possible() && !__builtin_cpu_supports("avx512f");
}

/* AMD's Zen 3 and 4. The latter has AVX-512, but multiplies no more numbers at once with it than with AVX2. */
static int is_zen_3_or_4(void)
{
    unsigned a, b, c, d, vendor[3];
    if (!__get_cpuid(0, &a, &vendor[0], &vendor[2], &vendor[1]) || memcmp(vendor, "AuthenticAMD", 12))
        return 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (a >> 8 & 15) == 15 && (a >> 20 & 255) == 0x19 - 15;
}

int imae_winograd_wanted(void)
{
    return imae_conv_weight_wanted() || (imae_conv_possible() && is_zen_3_or_4());
}

#include "conv_weight.h"
#include "winograd.h"

#else

int imae_conv_possible(void)
{
    return 0;
}

int imae_conv_weight_wanted(void)
{
    return 0;
}

int imae_winograd_wanted(void)
{
    return 0;
}

#endif
