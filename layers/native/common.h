#ifndef COMMON_H
#define COMMON_H

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One function for each of these processors; the first fitting one is taken when the library is loaded. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define CLONES
#endif

static inline int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

#endif
