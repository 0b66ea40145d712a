/* Kernels for the CPU, for blobs in the memory order N, H, W, C. Python calls them through ctypes.

   A sum over many numbers is made of short sums in REAL that are added up in double. */

#include "common.h"
#include "conv_weight.h"
#include "direct.h"
#include "suppress.h"
#include "winograd.h"

/* setup.py defines the hash of all files here; native.py does not use a library with another hash. */
#ifndef SOURCES_HASH
#define SOURCES_HASH unknown
#endif
#define STRING(x) #x
#define STRING_OF_VALUE(x) STRING(x)

const char *imae_sources_hash(void)
{
    return STRING_OF_VALUE(SOURCES_HASH);
}

#define JOIN(name, isa, type) imae_##name##_##isa##_##type
#define JOIN_VALUES(name, isa, type) JOIN(name, isa, type)
#define NAME(x) JOIN_VALUES(x, ISA, REAL)

/* For any processor. */
#define ISA default
#define TARGET
#define REAL float
#include "batch_norm.h"
#include "lrn.h"
#include "sgd.h"
#undef REAL
#define REAL double
#include "batch_norm.h"
#include "lrn.h"
#include "sgd.h"
#undef REAL
#undef ISA
#undef TARGET

/* For processors with further instructions: Python asks which ones this processor has, and chooses. */
#if defined(__x86_64__) && defined(__GNUC__)

#define ISA avx2
#define TARGET __attribute__((target("avx2")))
#define REAL float
#include "batch_norm.h"
#include "lrn.h"
#include "sgd.h"
#undef REAL
#define REAL double
#include "batch_norm.h"
#include "lrn.h"
#include "sgd.h"
#undef REAL
#undef ISA
#undef TARGET

#define ISA avx512f
#define TARGET __attribute__((target("avx512f")))
#define REAL float
#include "batch_norm.h"
#include "lrn.h"
#include "sgd.h"
#undef REAL
#define REAL double
#include "batch_norm.h"
#include "lrn.h"
#include "sgd.h"
#undef REAL
#undef ISA
#undef TARGET

int imae_has_avx2(void)
{
    return __builtin_cpu_supports("avx2");
}

int imae_has_avx512f(void)
{
    return __builtin_cpu_supports("avx512f");
}

#else

int imae_has_avx2(void)
{
    return 0;
}

int imae_has_avx512f(void)
{
    return 0;
}

#endif

#if HAS_CONV_KERNELS

int imae_conv_supported(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

/* Without AVX-512, for which oneDNN's own kernels are fast. */
int imae_conv_weight_is_faster(void)
{
    return imae_conv_supported() && !__builtin_cpu_supports("avx512f");
}

/* AMD's Zen 3 and 4. Zen 4 has AVX-512, but multiplies no more numbers at once with it than with AVX2. */
static int is_zen_3_or_4(void)
{
    unsigned a, b, c, d, vendor[3];
    if (!__get_cpuid(0, &a, &vendor[0], &vendor[2], &vendor[1]) || memcmp(vendor, "AuthenticAMD", 12))
        return 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (a >> 8 & 15) == 15 && (a >> 20 & 255) == 0x19 - 15;
}

int imae_winograd_is_faster(void)
{
    return imae_conv_weight_is_faster() || (imae_conv_supported() && is_zen_3_or_4());
}

#else

int imae_conv_supported(void)
{
    return 0;
}

int imae_conv_weight_is_faster(void)
{
    return 0;
}

int imae_winograd_is_faster(void)
{
    return 0;
}

#endif
