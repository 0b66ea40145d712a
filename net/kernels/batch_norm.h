/* BatchNorm, Scale, a sum with another blob and ReLU as one operation.

   A template: kernels.c includes it once for each type of blobs (float, double, bfloat16) and each instruction
   set. It defines
       BLOB       the type of a blob's numbers in memory; LOAD(x) is such a number as REAL, STORE(y) a REAL as
                  BLOB, rounded
       REAL       the type of the arithmetic, and of mean, variance, factors and their gradients
       MOST_OF_0  the largest REAL that STORE rounds to 0
       NAME(x)    the name of function x for this BLOB and instruction set
       TARGET     attributes of the functions whose loops the compiler turns into vector instructions

   A blob is `rows` (N H W) times `channels` numbers. It is divided into blocks that stay in the processor's
   cache. A block is divided into spans of one or several rows, so that the inner loops are long: number j of a
   span belongs to channel j % channels. */

#if !defined(BLOB) || !defined(REAL) || !defined(NAME) || !defined(TARGET)
#error "a template: see kernels.c"
#endif

#ifndef BATCH_NORM_H
#define BATCH_NORM_H

#include "common.h"

enum { MIN_SPAN = 128, MAX_BLOCK = 8192 };

static int64_t span_size(int64_t channels)
{
    return (MIN_SPAN + channels - 1) / channels * channels;
}

static int64_t block_size(int64_t span)
{
    return span < MAX_BLOCK ? MAX_BLOCK / span * span : span;
}

#endif

static inline REAL NAME(affine)(REAL x, REAL mean, REAL slope, REAL bias)
{
    return (x - mean) * slope + bias;
}

/* Adds x - pivot and its square for each place in a span, over a block of `count` numbers. The next block, at
   `next`, is fetched into the cache meanwhile. */
TARGET static void NAME(add_squares)(const BLOB *restrict x, const BLOB *next, int64_t count, int64_t span,
                                     const REAL *restrict pivot, REAL *restrict sums, REAL *restrict squares)
{
    for (; count > 0; count -= span, x += span, next += span) {
        int64_t n = minimum(count, span);
        for (int64_t j = 0; j < n; j += 64 / sizeof(BLOB))
            __builtin_prefetch(next + j);
        for (int64_t j = 0; j < n; j++) {
            REAL d = LOAD(x[j]) - pivot[j];
            sums[j] += d;
            squares[j] += d * d;
        }
    }
}

TARGET static void NAME(add)(const BLOB *restrict x, int64_t count, int64_t span, REAL *restrict sums)
{
    for (; count > 0; count -= span, x += span)
        for (int64_t j = 0, n = minimum(count, span); j < n; j++)
            sums[j] += LOAD(x[j]);
}

/* The top of a block; shortcut may be NULL. As in Caffe's ReLU, NaN stays NaN. */
TARGET static void NAME(transform)(const BLOB *restrict x, const BLOB *restrict shortcut, int64_t count,
                                   int64_t span, const REAL *restrict mean, const REAL *restrict slope,
                                   const REAL *restrict bias, int relu, BLOB *restrict top)
{
    const REAL least = relu ? 0 : (REAL)-INFINITY;
    for (int64_t start = 0; start < count; start += span) {
        const BLOB *x_span = x + start, *shortcut_span = shortcut + start;
        BLOB *top_span = top + start;
        for (int64_t j = 0, n = minimum(count - start, span); j < n; j++) {
            REAL y = NAME(affine)(LOAD(x_span[j]), mean[j], slope[j], bias[j]);
            if (shortcut)
                y += LOAD(shortcut_span[j]);
            y = least > y ? least : y;
            top_span[j] = STORE(y);
        }
    }
}

/* Adds top_diff and top_diff (x - mean) for each place in a span, over a block. With a ReLU, top_diff is masked
   first: by `top`, and the result is stored in `masked`; or, where `masked` is NULL, by the top of `transform`,
   which is computed again: 0 is what STORE makes 0. */
TARGET static void NAME(add_gradients)(const BLOB *restrict x, const BLOB *restrict top,
                                       const BLOB *restrict top_diff, int64_t count, int64_t span,
                                       const REAL *restrict mean, const REAL *restrict slope,
                                       const REAL *restrict bias, int relu, BLOB *restrict masked,
                                       REAL *restrict sums, REAL *restrict products)
{
    const REAL most = relu ? MOST_OF_0 : (REAL)NAN; /* nothing is below NaN */
    for (int64_t start = 0; start < count; start += span) {
        const BLOB *x_span = x + start, *diff_span = top_diff + start, *top_span = top + start;
        BLOB *masked_span = masked + start;
        int64_t n = minimum(count - start, span);
        if (masked)
            for (int64_t j = 0; j < n; j++) {
                BLOB d = diff_span[j], g = LOAD(top_span[j]) <= 0 ? 0 : d;
                masked_span[j] = g;
                sums[j] += LOAD(g);
                products[j] += LOAD(g) * (LOAD(x_span[j]) - mean[j]);
            }
        else
            for (int64_t j = 0; j < n; j++) {
                REAL d = LOAD(diff_span[j]), from = LOAD(x_span[j]);
                REAL y = NAME(affine)(from, mean[j], slope[j], bias[j]);
                REAL g = y <= most ? 0 : d;
                sums[j] += g;
                products[j] += g * (from - mean[j]);
            }
    }
}

/* The bottom's diff of a block; `relu` as in add_gradients without `masked`. */
TARGET static void NAME(transform_gradients)(const BLOB *restrict x, const BLOB *restrict top_diff,
                                             int64_t count, int64_t span, const REAL *restrict mean,
                                             const REAL *restrict slope, const REAL *restrict bias,
                                             const REAL *restrict offset, const REAL *restrict by_x, int relu,
                                             BLOB *restrict diff)
{
    const REAL most = relu ? MOST_OF_0 : (REAL)NAN;
    for (; count > 0; count -= span, x += span, top_diff += span, diff += span)
        for (int64_t j = 0, n = minimum(count, span); j < n; j++) {
            REAL d = LOAD(top_diff[j]), from = LOAD(x[j]);
            REAL y = NAME(affine)(from, mean[j], slope[j], bias[j]);
            REAL g = y <= most ? 0 : d;
            REAL result = (g * slope[j] - offset[j]) - (from - mean[j]) * by_x[j];
            diff[j] = STORE(result);
        }
}

/* Adds the numbers of a span to the sums of their channels. */
TARGET static void NAME(sum_channels)(const REAL *restrict span_sums, int64_t span, int64_t channels,
                                      double *restrict sums)
{
    for (; span > 0; span -= channels, span_sums += channels)
        for (int64_t c = 0; c < channels; c++)
            sums[c] += span_sums[c];
}

/* A span with the values of its channels, or with `default_value` where `values` is NULL. */
static void NAME(repeat)(const REAL *values, REAL default_value, int64_t span, int64_t channels, REAL *out)
{
    for (; span > 0; span -= channels, out += channels)
        for (int64_t c = 0; c < channels; c++)
            out[c] = values ? values[c] : default_value;
}

/* Three spans, one after another: mean, slope (weight times factor) and bias. */
static void NAME(repeat_affine)(const REAL *mean, const REAL *weight, const REAL *bias, const REAL *factor,
                                int64_t span, int64_t channels, REAL *spans)
{
    NAME(repeat)(mean, 0, span, channels, spans);
    NAME(repeat)(weight, 1, span, channels, spans + span);
    NAME(repeat)(bias, 0, span, channels, spans + 2 * span);
    for (int64_t j = 0; j < span; j += channels)
        for (int64_t c = 0; c < channels; c++)
            spans[span + j + c] *= factor[c];
}

/* For each channel of a block: the mean and the sum of squared distances from it. `scratch` holds three spans.
   The sums in REAL are of differences from `pivot`, the mean as the first pass rounds it. */
static void NAME(block_statistics)(const BLOB *x, const BLOB *next, int64_t count, int64_t span,
                                   int64_t channels, REAL *scratch, double *mean, double *squares)
{
    REAL *pivot = scratch, *sums = scratch + span, *sums_of_squares = scratch + 2 * span;
    double n = (double)(count / channels);
    memset(sums, 0, 2 * span * sizeof(REAL));
    memset(mean, 0, channels * sizeof(double));
    memset(squares, 0, channels * sizeof(double));
    NAME(add)(x, count, span, sums);
    NAME(sum_channels)(sums, span, channels, mean);
    for (int64_t c = 0; c < channels; c++)
        pivot[c] = (REAL)(mean[c] / n);
    for (int64_t j = channels; j < span; j++)
        pivot[j] = pivot[j - channels];
    memset(sums, 0, span * sizeof(REAL));
    NAME(add_squares)(x, next, count, span, pivot, sums, sums_of_squares);
    memset(mean, 0, channels * sizeof(double));
    NAME(sum_channels)(sums, span, channels, mean);
    NAME(sum_channels)(sums_of_squares, span, channels, squares);
    for (int64_t c = 0; c < channels; c++) {
        squares[c] -= mean[c] * mean[c] / n;
        mean[c] = pivot[c] + mean[c] / n;
    }
}

/* For each channel: the mean of all rows and the sum of squared distances from it, from those of the blocks. The
   last block has the rows that are left. */
TARGET static void NAME(merge_statistics)(int64_t blocks, int64_t block_rows, int64_t rows, int64_t channels,
                                          const double *restrict means, const double *restrict squares,
                                          double *restrict mean, double *restrict total)
{
    memset(mean, 0, channels * sizeof(double));
    memset(total, 0, channels * sizeof(double));
    for (int64_t b = 0; b < blocks; b++) {
        double n = (double)minimum(block_rows, rows - b * block_rows);
        for (int64_t c = 0; c < channels; c++)
            mean[c] += means[b * channels + c] * n;
    }
    for (int64_t c = 0; c < channels; c++)
        mean[c] /= (double)rows;
    for (int64_t b = 0; b < blocks; b++) {
        double n = (double)minimum(block_rows, rows - b * block_rows);
        for (int64_t c = 0; c < channels; c++) {
            double d = means[b * channels + c] - mean[c];
            total[c] += squares[b * channels + c] + d * d * n;
        }
    }
}

/* top = relu((x - mean) factor weight + bias + shortcut); weight, bias and shortcut may be NULL, and without
   `relu` there is no ReLU. `spans` is scratch memory for three spans. */
static void NAME(transform_all)(const BLOB *x, int64_t count, int64_t span, int64_t block, int64_t channels,
                                const REAL *weight, const REAL *bias, const BLOB *shortcut, const REAL *mean,
                                const REAL *factor, int relu, int threads, REAL *spans, BLOB *top)
{
    NAME(repeat_affine)(mean, weight, bias, factor, span, channels, spans);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t start = 0; start < count; start += block)
        NAME(transform)(x + start, shortcut ? shortcut + start : NULL, minimum(block, count - start), span,
                        spans, spans + span, spans + 2 * span, relu, top + start);
}

/* The same by a given mean and variance, factor being 1 / sqrt(variance + eps).
   Returns 0, or 1 if memory cannot be allocated. */
int NAME(batch_norm_by_statistics)(const BLOB *x, int64_t rows, int64_t channels, const REAL *weight,
                                   const REAL *bias, const BLOB *shortcut, const REAL *mean,
                                   const REAL *variance, double eps, int relu, int threads, BLOB *top)
{
    int64_t span = span_size(channels);
    REAL *spans = malloc((3 * span + channels) * sizeof(REAL)), *factor = spans + 3 * span;
    int failed = !spans;
    if (!failed) {
        for (int64_t c = 0; c < channels; c++)
            factor[c] = (REAL)(1 / sqrt((double)variance[c] + eps));
        NAME(transform_all)(x, rows * channels, span, block_size(span), channels, weight, bias, shortcut, mean,
                            factor, relu, threads, spans, top);
    }
    free(spans);
    return failed;
}

/* The same by the statistics of the batch. It also writes their mean, unbiased variance and
   factor = 1 / sqrt(biased variance + eps). Returns 0, or 1 if memory cannot be allocated. */
int NAME(batch_norm)(const BLOB *x, int64_t rows, int64_t channels, const REAL *weight, const REAL *bias,
                     const BLOB *shortcut, double eps, int relu, int threads, BLOB *top, REAL *mean,
                     REAL *variance, REAL *factor)
{
    int64_t count = rows * channels, span = span_size(channels), block = block_size(span);
    int64_t blocks = (count + block - 1) / block;
    double *means = malloc(2 * (blocks + 1) * channels * sizeof(double)), *squares = means + blocks * channels;
    double *sums = squares + blocks * channels, *totals = sums + channels;
    REAL *spans = malloc((3 + 3 * (int64_t)threads) * span * sizeof(REAL));
    int failed = !means || !spans;
    if (!failed) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t b = 0; b < blocks; b++)
            NAME(block_statistics)(x + b * block, x + (b + 1) * block, minimum(block, count - b * block), span,
                                   channels, spans + (3 + 3 * omp_get_thread_num()) * span,
                                   means + b * channels, squares + b * channels);
        NAME(merge_statistics)(blocks, block / channels, rows, channels, means, squares, sums, totals);
        for (int64_t c = 0; c < channels; c++) {
            mean[c] = (REAL)sums[c];
            variance[c] = (REAL)(totals[c] / (double)(rows > 1 ? rows - 1 : 1));
            factor[c] = (REAL)(1 / sqrt(totals[c] / (double)rows + eps));
        }
        NAME(transform_all)(x, count, span, block, channels, weight, bias, shortcut, mean, factor, relu,
                            threads, spans, top);
    }
    free(means);
    free(spans);
    return failed;
}

/* The gradients of batch_norm. With a ReLU and a shortcut, `top` is needed, and `masked` gets the gradient of
   the ReLU's bottom, which is also the shortcut's; else both are NULL.
   Returns 0, or 1 if memory cannot be allocated. */
int NAME(batch_norm_gradients)(const BLOB *x, const BLOB *top, const BLOB *top_diff, int64_t rows,
                               int64_t channels, const REAL *weight, const REAL *bias, const REAL *mean,
                               const REAL *factor, int relu, int threads, BLOB *masked, BLOB *diff,
                               REAL *weight_diff, REAL *bias_diff)
{
    int64_t count = rows * channels, span = span_size(channels), block = block_size(span);
    int64_t blocks = (count + block - 1) / block;
    double *sums = malloc(2 * blocks * channels * sizeof(double)), *products = sums + blocks * channels;
    REAL *spans = malloc((5 + 2 * (int64_t)threads) * span * sizeof(REAL));
    int failed = !sums || !spans;
    if (!failed) {
        REAL *mean_span = spans, *slope = mean_span + span, *bias_span = slope + span;
        REAL *offset = bias_span + span, *by_x = offset + span;
        NAME(repeat_affine)(mean, weight, bias, factor, span, channels, spans);
        memset(sums, 0, 2 * blocks * channels * sizeof(double));
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t start = b * block, size = minimum(block, count - start);
            REAL *scratch = by_x + (1 + 2 * omp_get_thread_num()) * span;
            memset(scratch, 0, 2 * span * sizeof(REAL));
            NAME(add_gradients)(x + start, masked ? top + start : NULL, top_diff + start, size, span, mean_span,
                                slope, bias_span, relu, masked ? masked + start : NULL, scratch,
                                scratch + span);
            NAME(sum_channels)(scratch, span, channels, sums + b * channels);
            NAME(sum_channels)(scratch + span, span, channels, products + b * channels);
        }
        for (int64_t b = 1; b < blocks; b++)
            for (int64_t c = 0; c < channels; c++) {
                sums[c] += sums[b * channels + c];
                products[c] += products[b * channels + c];
            }
        for (int64_t c = 0; c < channels; c++) {
            double sum = sums[c], product = products[c] * factor[c];
            bias_diff[c] = (REAL)sum;
            weight_diff[c] = (REAL)product;
            offset[c] = (REAL)(slope[c] * sum / (double)rows);
            by_x[c] = (REAL)((double)slope[c] * factor[c] * product / (double)rows);
        }
        for (int64_t j = channels; j < span; j++) {
            offset[j] = offset[j - channels];
            by_x[j] = by_x[j - channels];
        }
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t start = b * block, size = minimum(block, count - start);
            NAME(transform_gradients)(x + start, (masked ? masked : top_diff) + start, size, span, mean_span,
                                      slope, bias_span, offset, by_x, relu && !masked, diff + start);
        }
    }
    free(sums);
    free(spans);
    return failed;
}
