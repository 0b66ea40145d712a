/* Kernels for the CPU, for blobs in the memory order N, H, W, C. Python calls them through ctypes.

   A sum over many numbers is made of short sums in REAL that are added up in double. */

#include "conv.h"
#include "pixels.h"
#include "suppress.h"

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

/* Blobs are of the type of the arithmetic; bfloat16.h has others. */
#define BLOB REAL
#define LOAD(x) (x)
#define STORE(y) (y)
#define MOST_OF_0 0

/* For any processor. */
#define ISA default
#define TARGET
#define REAL float
#include "batch_norm.h"
#include "lrn.h"
#include "sgd.h"
#include "bfloat16.h"
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
#include "bfloat16.h"
#undef REAL
#define REAL double
#include "batch_norm.h"
#include "lrn.h"
#include "sgd.h"
#undef REAL
#undef ISA
#undef TARGET

/* Without fused multiplications, which AVX2 has not: the same bits everywhere. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif

#define ISA avx512f
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,prefer-vector-width=512")))
#define REAL float
#include "batch_norm.h"
#include "lrn.h"
#include "sgd.h"
#include "bfloat16.h"
#undef REAL
#define REAL double
#include "batch_norm.h"
#include "lrn.h"
#include "sgd.h"
#undef REAL
#undef ISA
#undef TARGET

#if defined(__clang__)
#pragma STDC FP_CONTRACT DEFAULT
#else
#pragma GCC pop_options
#endif

int imae_has_avx2(void)
{
    return __builtin_cpu_supports("avx2");
}

int imae_has_avx512f(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
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

/* The convolutions' kernels need FMA, too; native.py asks. */
#if HAS_CONV_KERNELS

#define REAL float

#define ISA avx2
#define TARGET __attribute__((target("avx2,fma")))
#define VECTOR 8
#define MAX_SIDE 6
#include "vectors.h"
#include "activation.h"
#include "conv_weight.h"
#include "direct.h"
#include "winograd.h"
#undef ISA
#undef TARGET
#undef VECTOR
#undef MAX_SIDE

/* The tests compile this form for other instructions, to run it on a processor without AVX-512. */
#ifdef WIDE_ON_AVX2
#define WIDE_INSTRUCTIONS "avx2,fma"
#else
#define WIDE_INSTRUCTIONS "avx512f,fma"
#endif
#define ISA avx512f
#define TARGET __attribute__((target(WIDE_INSTRUCTIONS)))
#define VECTOR 16
#define MAX_SIDE 12
#include "vectors.h"
#include "activation.h"
#include "conv_weight.h"
#include "winograd.h"
#if HAS_AMX
#include "conv_weight_bfloat16.h"
#endif
#undef ISA
#undef TARGET
#undef VECTOR
#undef MAX_SIDE

#undef REAL

int imae_has_fma(void)
{
    return __builtin_cpu_supports("fma");
}

#else

int imae_has_fma(void)
{
    return 0;
}

#endif

int imae_has_amx(void)
{
#if HAS_AMX
    return has_tiles();
#else
    return 0;
#endif
}
