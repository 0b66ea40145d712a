#ifndef COMMON_H
#define COMMON_H

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static inline int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

#endif
