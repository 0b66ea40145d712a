/* BatchNorm and LRN of blobs in bfloat16: the upper half of a float, with a mantissa of 8 bits.

   All arithmetic is in float, and only a blob's number is rounded, once. Conversion is by operations on
   integers, for which each instruction set has vectors. kernels.c includes this file once for each instruction
   set, where REAL is float. SGD has no such form: parameters are never in bfloat16. */

#if !defined(ISA) || !defined(REAL) || !defined(NAME) || !defined(TARGET)
#error "a template: see kernels.c"
#endif

#ifndef BFLOAT16_H
#define BFLOAT16_H

#include "common.h"

typedef uint16_t bfloat16;

static inline float from_bfloat16(bfloat16 x)
{
    union {
        uint32_t bits;
        float value;
    } number = {(uint32_t)x << 16};
    return number.value;
}

/* Rounds to the nearest, of two equally near to the even one. NaN stays NaN: those that arithmetic makes are
   quiet, so one of the upper bits of their mantissa is set; they are not rounded, which could make 0 of them. */
static inline bfloat16 to_bfloat16(float x)
{
    union {
        float value;
        uint32_t bits;
    } number = {x};
    uint32_t bits = number.bits, half = 0x7fff + (bits >> 16 & 1), is_number = -(uint32_t)(x == x);
    return (bfloat16)((bits + (half & is_number)) >> 16); /* with a condition gcc packs each number four times */
}

#endif

#pragma push_macro("NAME")
#pragma push_macro("BLOB")
#pragma push_macro("LOAD")
#pragma push_macro("STORE")
#pragma push_macro("MOST_OF_0")
#undef NAME
#undef BLOB
#undef LOAD
#undef STORE
#undef MOST_OF_0
#define NAME(x) JOIN_VALUES(x, ISA, BLOB)
#define BLOB bfloat16
#define LOAD(x) from_bfloat16(x)
#define STORE(y) to_bfloat16(y)
#define MOST_OF_0 0x1p-134f /* half of the least number above 0; of two equally near, 0 is the even one */
#include "batch_norm.h"
#include "lrn.h"
#pragma pop_macro("NAME")
#pragma pop_macro("BLOB")
#pragma pop_macro("LOAD")
#pragma pop_macro("STORE")
#pragma pop_macro("MOST_OF_0")
