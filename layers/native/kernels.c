/* Loops over blobs that lie in memory in the order N, H, W, C, for the CPU. Python calls them by ctypes.

   A sum over many numbers is made of short sums in REAL that are added up in double. */

#include <math.h>

#include "common.h"

/* layers/native/__init__.py has the same number: a library that was built from other sources is not used. */
int imae_version(void)
{
    return 3;
}

#define REAL float
#define NAME(x) imae_##x##_float
#include "batch_norm.h"
#undef REAL
#undef NAME

#define REAL double
#define NAME(x) imae_##x##_double
#include "batch_norm.h"
#undef REAL
#undef NAME

#include "conv.h"
