/* What the convolutions' kernels share. They are in single precision, for processors with AVX2 and FMA. */

typedef struct {
    int64_t num, height, width, channels, top_height, top_width, outputs;
    int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
} Conv;

#if defined(__x86_64__) && defined(__GNUC__)

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

/* Whether this processor can, and has no AVX-512, for which oneDNN's own kernels are fast. */
int imae_conv_wanted(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && !__builtin_cpu_supports("avx512f");
}

int imae_conv_possible(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

#include "conv_weight.h"
#include "winograd.h"

#else

int imae_conv_wanted(void)
{
    return 0;
}

int imae_conv_possible(void)
{
    return 0;
}

#endif
