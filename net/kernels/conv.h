/* Shared by the convolutions' kernels, which are templates: kernels.c includes them once for each instruction
   set. They are in single precision, for processors with FMA. With a compiler that cannot compile for these,
   HAS_CONV_KERNELS is 0. */

#ifndef CONV_H
#define CONV_H

#include "common.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_CONV_KERNELS 1
#else
#define HAS_CONV_KERNELS 0
#endif

/* The sizes of a convolution: of its bottom, its top, its windows. native.py fills it in this order. */
typedef struct {
    int64_t num, height, width, channels, top_height, top_width, outputs;
    int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
} Conv;

enum { CACHE_LINE = 16 }; /* numbers */

/* Memory that begins with a line of the cache: a vector of 16 numbers anywhere else would lie in two. The
   numbers are 0 if `zero`. NULL if memory cannot be allocated. */
static inline float *new_floats(int64_t count, int zero)
{
    size_t line = CACHE_LINE * sizeof(float), size = (count * sizeof(float) + line - 1) / line * line;
    float *memory = aligned_alloc(line, size);
    return memory && zero ? memset(memory, 0, size) : memory;
}

/* How many images a job has, if it has at most `most`: so many that each thread has as many jobs. */
static inline int64_t images_of_a_job(int64_t num, int64_t most, int threads)
{
    int64_t jobs = (num + most - 1) / most;
    jobs = (jobs + threads - 1) / threads * threads;
    return (num + jobs - 1) / jobs;
}

/* How many of `count` numbers the next part has, if parts have at most `most`. The last two are of one size: a
   small part would have too few sums at once. */
static inline int64_t next_part(int64_t count, int64_t most)
{
    return count > 2 * most ? most : count > most ? (count + 1) / 2 : count;
}

/* What the templates are written with. */
#define VEC NAME(Vector)
#define LOAD_VEC(x) (*(const VEC *)(x))
#define STORE_VEC(x, y) (*(VEC *)(x) = (y))
#define WIDE (2 * VECTOR)
#define INLINE_TARGET TARGET static inline __attribute__((always_inline))

#define SIX_SIDES(make, vectors)                                                                               \
    make(1, vectors) make(2, vectors) make(3, vectors) make(4, vectors) make(5, vectors) make(6, vectors)
#define TWELVE_SIDES(make, vectors)                                                                            \
    SIX_SIDES(make, vectors)                                                                                   \
    make(7, vectors) make(8, vectors) make(9, vectors) make(10, vectors) make(11, vectors) make(12, vectors)
#define SIX_NAMES(name, vectors)                                                                               \
    NAME(name##_1_##vectors), NAME(name##_2_##vectors), NAME(name##_3_##vectors), NAME(name##_4_##vectors),    \
        NAME(name##_5_##vectors), NAME(name##_6_##vectors)
#define TWELVE_NAMES(name, vectors)                                                                            \
    SIX_NAMES(name, vectors), NAME(name##_7_##vectors), NAME(name##_8_##vectors), NAME(name##_9_##vectors),    \
        NAME(name##_10_##vectors), NAME(name##_11_##vectors), NAME(name##_12_##vectors)

#endif
