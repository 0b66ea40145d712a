/* A ReLU or PReLU as a part of the convolutions' kernels. A template, like vectors.h. */

#if !defined(VECTOR) || !defined(NAME) || !defined(TARGET)
#error "a template: see kernels.c"
#endif

#ifndef ACTIVATION_H
#define ACTIVATION_H

/* What follows the sum. NaN stays NaN. */
enum { NO_ACTIVATION, RELU, SLOPES };

#endif

typedef int32_t NAME(Mask) __attribute__((vector_size(4 * VECTOR), aligned(4)));

/* slopes: NULL, or those of these outputs. */
INLINE_TARGET VEC NAME(activated)(VEC y, int64_t activation, const float *slopes)
{
    if (activation == NO_ACTIVATION)
        return y;
    NAME(Mask) below = y < (VEC){0}; /* false for NaN */
    if (activation == RELU)
        return (VEC)(~below & (NAME(Mask))y);
    return (VEC)((below & (NAME(Mask))(y * LOAD_VEC(slopes))) | (~below & (NAME(Mask))y));
}
