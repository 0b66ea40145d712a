/* A ReLU or PReLU as a part of the convolutions' kernels. */

#ifndef ACTIVATION_H
#define ACTIVATION_H

#include "conv.h"

/* What follows the sum. NaN stays NaN. */
enum { NO_ACTIVATION, RELU, SLOPES };

#if HAS_CONV_KERNELS

typedef int32_t Mask __attribute__((vector_size(4 * VECTOR), aligned(4)));

/* slopes: NULL, or those of these outputs. */
INLINE_AVX2 Vector activated(Vector y, int64_t activation, const float *slopes)
{
    if (activation == NO_ACTIVATION)
        return y;
    Mask below = y < (Vector){0}; /* false for NaN */
    if (activation == RELU)
        return (Vector)(~below & (Mask)y);
    return (Vector)((below & (Mask)(y * load(slopes))) | (~below & (Mask)y));
}

#endif

#endif
