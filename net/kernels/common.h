/* Included by all kernels. */

#ifndef COMMON_H
#define COMMON_H

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static inline int64_t minimum(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

#endif
