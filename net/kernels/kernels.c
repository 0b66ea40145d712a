/* Loops over blobs that lie in memory in the order N, H, W, C, for the CPU. Python calls them by ctypes.

   A sum over many numbers is made of short sums in REAL that are added up in double. */

#include <math.h>

#include "common.h"

/* net/kernels/native.py has the same number: a library that was built from other sources is not used. */
int imae_version(void)
{
    return 4;
}

#define JOIN(name, isa, type) imae_##name##_##isa##_##type
#define JOIN_VALUES(name, isa, type) JOIN(name, isa, type)
#define NAME(x) JOIN_VALUES(x, ISA, REAL)

/* For any processor. */
#define ISA default
#define TARGET
#define REAL float
#include "batch_norm.h"
#undef REAL
#define REAL double
#include "batch_norm.h"
#undef REAL
#undef ISA
#undef TARGET

/* For those with further instructions; Python asks which there are, and chooses. */
#if defined(__x86_64__) && defined(__GNUC__)

#define ISA avx2
#define TARGET __attribute__((target("avx2")))
#define REAL float
#include "batch_norm.h"
#undef REAL
#define REAL double
#include "batch_norm.h"
#undef REAL
#undef ISA
#undef TARGET

#define ISA avx512f
#define TARGET __attribute__((target("avx512f")))
#define REAL float
#include "batch_norm.h"
#undef REAL
#define REAL double
#include "batch_norm.h"
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

#include "conv.h"
