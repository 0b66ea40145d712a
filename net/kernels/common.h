/* Included by all kernels. */

#ifndef COMMON_H
#define COMMON_H

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Whether the compiler knows AMX; what uses it runs where imae_has_amx says so. */
#define HAS_AMX 0
#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxbf16intrin.h>)
#undef HAS_AMX
#define HAS_AMX 1
#endif
#endif

static inline int64_t minimum(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

#endif
