/* BatchNorm by the batch's statistics, Scale, a sum with another blob and ReLU in one; included once for each
   REAL and each ISA (kernels.c), TARGET standing before the inner loops, which the compiler makes vectors of, and
   NAME(x) being what its functions are called.

   A blob is `rows` (N H W) times `channels` numbers. It is worked on in blocks that stay in the processor's
   cache, a block in spans of one or several rows, so that the inner loops are long: number j of a span
   belongs to channel j % channels. */

#ifndef BATCH_NORM_H
#define BATCH_NORM_H

enum { LEAST_SPAN = 128, BLOCK = 8192 };

static int64_t span_of(int64_t channels)
{
    return (LEAST_SPAN + channels - 1) / channels * channels;
}

static int64_t block_of(int64_t span)
{
    return span < BLOCK ? BLOCK / span * span : span;
}

#endif

static inline REAL NAME(affine)(REAL x, REAL mean, REAL slope, REAL bias)
{
    return (x - mean) * slope + bias;
}

/* Adds up a block whose following block is at `next`: that is fetched while this one is in the cache. */
TARGET static void NAME(add_squares)(const REAL *restrict x, const REAL *next, int64_t count, int64_t span,
                                     const REAL *restrict near, REAL *restrict sums, REAL *restrict squares)
{
    for (; count > 0; count -= span, x += span, next += span) {
        int64_t n = least(count, span);
        for (int64_t j = 0; j < n; j += 64 / sizeof(REAL))
            __builtin_prefetch(next + j);
        for (int64_t j = 0; j < n; j++) {
            REAL d = x[j] - near[j];
            sums[j] += d;
            squares[j] += d * d;
        }
    }
}

TARGET static void NAME(add)(const REAL *restrict x, int64_t count, int64_t span, REAL *restrict sums)
{
    for (; count > 0; count -= span, x += span)
        for (int64_t j = 0, n = least(count, span); j < n; j++)
            sums[j] += x[j];
}

/* Shortcut may be missing. Caffe's ReLU: what is not a number stays so. */
TARGET static void NAME(transform)(const REAL *restrict x, const REAL *restrict shortcut, int64_t count,
                                   int64_t span, const REAL *restrict mean, const REAL *restrict slope,
                                   const REAL *restrict bias, int relu, REAL *restrict top)
{
    for (int64_t at = 0; at < count; at += span) {
        const REAL *of_x = x + at, *of_shortcut = shortcut + at;
        REAL *of_top = top + at;
        for (int64_t j = 0, n = least(count - at, span); j < n; j++) {
            REAL y = NAME(affine)(of_x[j], mean[j], slope[j], bias[j]);
            if (shortcut)
                y += of_shortcut[j];
            of_top[j] = relu && y < 0 ? 0 : y;
        }
    }
}

/* Adds up top_diff, and top_diff (x - mean). Where there is a ReLU, its gradient comes first: by its top, and
   is put into `masked`; or, where these are missing, by the top of `transform`, which is computed again. */
TARGET static void NAME(add_gradients)(const REAL *restrict x, const REAL *restrict top,
                                       const REAL *restrict top_diff, int64_t count, int64_t span,
                                       const REAL *restrict mean, const REAL *restrict slope,
                                       const REAL *restrict bias, int relu, REAL *restrict masked,
                                       REAL *restrict sums, REAL *restrict products)
{
    for (int64_t at = 0; at < count; at += span) {
        const REAL *of_x = x + at, *of_diff = top_diff + at, *of_top = top + at;
        REAL *of_masked = masked + at;
        int64_t n = least(count - at, span);
        if (masked)
            for (int64_t j = 0; j < n; j++) {
                REAL d = of_diff[j], g = of_top[j] <= 0 ? 0 : d;
                of_masked[j] = g;
                sums[j] += g;
                products[j] += g * (of_x[j] - mean[j]);
            }
        else
            for (int64_t j = 0; j < n; j++) {
                REAL d = of_diff[j], y = NAME(affine)(of_x[j], mean[j], slope[j], bias[j]);
                REAL g = relu && y <= 0 ? 0 : d;
                sums[j] += g;
                products[j] += g * (of_x[j] - mean[j]);
            }
    }
}

/* With `relu` as there. */
TARGET static void NAME(transform_gradients)(const REAL *restrict x, const REAL *restrict top_diff,
                                             int64_t count, int64_t span, const REAL *restrict mean,
                                             const REAL *restrict slope, const REAL *restrict bias,
                                             const REAL *restrict offset, const REAL *restrict by_x, int relu,
                                             REAL *restrict diff)
{
    for (; count > 0; count -= span, x += span, top_diff += span, diff += span)
        for (int64_t j = 0, n = least(count, span); j < n; j++) {
            REAL d = top_diff[j], y = NAME(affine)(x[j], mean[j], slope[j], bias[j]);
            REAL g = relu && y <= 0 ? 0 : d;
            diff[j] = (g * slope[j] - offset[j]) - (x[j] - mean[j]) * by_x[j];
        }
}

/* Sums of a span's numbers, added up for their channels. */
static void NAME(gather)(const REAL *of_span, int64_t span, int64_t channels, double *sums)
{
    for (int64_t c = 0; c < channels; c++)
        for (int64_t j = c; j < span; j += channels)
            sums[c] += of_span[j];
}

/* The other way; `missing` where there are no values. */
static void NAME(spread)(const REAL *values, REAL missing, int64_t span, int64_t channels, REAL *of_span)
{
    for (int64_t j = 0; j < span; j++)
        of_span[j] = values ? values[j % channels] : missing;
}

/* Mean, slope (weight times factor) and bias of a span's numbers, one array behind another. */
static void NAME(spread_affine)(const REAL *mean, const REAL *weight, const REAL *bias, const REAL *factor,
                                int64_t span, int64_t channels, REAL *of_span)
{
    NAME(spread)(mean, 0, span, channels, of_span);
    NAME(spread)(weight, 1, span, channels, of_span + span);
    NAME(spread)(bias, 0, span, channels, of_span + 2 * span);
    for (int64_t j = 0; j < span; j++)
        of_span[span + j] *= factor[j % channels];
}

/* Mean and sum of squared distances from it, of a block's channels; `own` has room for three spans. */
static void NAME(block_statistics)(const REAL *x, const REAL *next, int64_t count, int64_t span,
                                   int64_t channels, REAL *own, double *mean, double *squares)
{
    REAL *near = own, *sums = own + span, *sums_of_squares = own + 2 * span;
    double n = (double)(count / channels);
    memset(sums, 0, 2 * span * sizeof(REAL));
    memset(mean, 0, channels * sizeof(double));
    memset(squares, 0, channels * sizeof(double));
    NAME(add)(x, count, span, sums);
    NAME(gather)(sums, span, channels, mean);
    for (int64_t j = 0; j < span; j++)
        near[j] = (REAL)(mean[j % channels] / n);
    memset(sums, 0, span * sizeof(REAL));
    NAME(add_squares)(x, next, count, span, near, sums, sums_of_squares);
    memset(mean, 0, channels * sizeof(double));
    NAME(gather)(sums, span, channels, mean);
    NAME(gather)(sums_of_squares, span, channels, squares);
    for (int64_t c = 0; c < channels; c++) {
        squares[c] -= mean[c] * mean[c] / n;
        mean[c] = near[c] + mean[c] / n;
    }
}

/* top = relu((x - mean) factor weight + bias + shortcut), of which weight, bias, shortcut and the ReLU may be
   missing; `of_span` has room for three spans. */
static void NAME(transform_all)(const REAL *x, int64_t count, int64_t span, int64_t block, int64_t channels,
                                const REAL *weight, const REAL *bias, const REAL *shortcut, const REAL *mean,
                                const REAL *factor, int relu, int threads, REAL *of_span, REAL *top)
{
    NAME(spread_affine)(mean, weight, bias, factor, span, channels, of_span);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t at = 0; at < count; at += block)
        NAME(transform)(x + at, shortcut ? shortcut + at : NULL, least(block, count - at), span, of_span,
                        of_span + span, of_span + 2 * span, relu, top + at);
}

/* The same by a given mean and variance, factor being 1 / sqrt(variance + eps).
   Returns 0, or 1 where there is no memory. */
int NAME(batch_norm_by_statistics)(const REAL *x, int64_t rows, int64_t channels, const REAL *weight, const REAL *bias,
                           const REAL *shortcut, const REAL *mean, const REAL *variance, double eps, int relu,
                           int threads, REAL *top)
{
    int64_t span = span_of(channels);
    REAL *of_span = malloc((3 * span + channels) * sizeof(REAL)), *factor = of_span + 3 * span;
    int failed = !of_span;
    if (!failed) {
        for (int64_t c = 0; c < channels; c++)
            factor[c] = (REAL)(1 / sqrt((double)variance[c] + eps));
        NAME(transform_all)(x, rows * channels, span, block_of(span), channels, weight, bias, shortcut, mean,
                            factor, relu, threads, of_span, top);
    }
    free(of_span);
    return failed;
}

/* The same by the batch's mean, which it gives with the unbiased variance and factor = 1 / sqrt(biased variance
   + eps).
   Returns 0, or 1 where there is no memory. */
int NAME(batch_norm)(const REAL *x, int64_t rows, int64_t channels, const REAL *weight, const REAL *bias,
                     const REAL *shortcut, double eps, int relu, int threads, REAL *top, REAL *mean,
                     REAL *variance, REAL *factor)
{
    int64_t count = rows * channels, span = span_of(channels), block = block_of(span);
    int64_t blocks = (count + block - 1) / block;
    double *means = malloc(2 * blocks * channels * sizeof(double)), *squares = means + blocks * channels;
    REAL *of_span = malloc((3 + 3 * (int64_t)threads) * span * sizeof(REAL));
    int failed = !means || !of_span;
    if (!failed) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t b = 0; b < blocks; b++)
            NAME(block_statistics)(x + b * block, x + (b + 1) * block, least(block, count - b * block), span,
                                   channels, of_span + (3 + 3 * omp_get_thread_num()) * span,
                                   means + b * channels, squares + b * channels);
        for (int64_t c = 0; c < channels; c++) {
            double sum = 0, all = 0;
            for (int64_t b = 0; b < blocks; b++)
                sum += means[b * channels + c] * (double)(least(block, count - b * block) / channels);
            for (int64_t b = 0; b < blocks; b++) {
                double d = means[b * channels + c] - sum / (double)rows;
                all += squares[b * channels + c] + d * d * (double)(least(block, count - b * block) / channels);
            }
            mean[c] = (REAL)(sum / (double)rows);
            variance[c] = (REAL)(all / (double)(rows > 1 ? rows - 1 : 1));
            factor[c] = (REAL)(1 / sqrt(all / (double)rows + eps));
        }
        NAME(transform_all)(x, count, span, block, channels, weight, bias, shortcut, mean, factor, relu, threads,
                            of_span, top);
    }
    free(means);
    free(of_span);
    return failed;
}

/* The gradients of the above. Where there are a ReLU and a shortcut, `top` is needed, and `masked` gets the
   gradient of what is before the ReLU, which is the shortcut's; else both are missing.
   Returns 0, or 1 where there is no memory. */
int NAME(batch_norm_gradients)(const REAL *x, const REAL *top, const REAL *top_diff, int64_t rows,
                               int64_t channels, const REAL *weight, const REAL *bias, const REAL *mean,
                               const REAL *factor, int relu, int threads, REAL *masked, REAL *diff,
                               REAL *weight_diff, REAL *bias_diff)
{
    int64_t count = rows * channels, span = span_of(channels), block = block_of(span);
    int64_t blocks = (count + block - 1) / block;
    double *sums = malloc(2 * blocks * channels * sizeof(double)), *products = sums + blocks * channels;
    REAL *of_span = malloc((5 + 2 * (int64_t)threads) * span * sizeof(REAL));
    int failed = !sums || !of_span;
    if (!failed) {
        REAL *of_mean = of_span, *slope = of_mean + span, *of_bias = slope + span;
        REAL *offset = of_bias + span, *by_x = offset + span;
        NAME(spread_affine)(mean, weight, bias, factor, span, channels, of_span);
        memset(sums, 0, 2 * blocks * channels * sizeof(double));
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t at = b * block, here = least(block, count - at);
            REAL *own = by_x + (1 + 2 * omp_get_thread_num()) * span;
            memset(own, 0, 2 * span * sizeof(REAL));
            NAME(add_gradients)(x + at, masked ? top + at : NULL, top_diff + at, here, span, of_mean, slope,
                                of_bias, relu, masked ? masked + at : NULL, own, own + span);
            NAME(gather)(own, span, channels, sums + b * channels);
            NAME(gather)(own + span, span, channels, products + b * channels);
        }
        for (int64_t c = 0; c < channels; c++) {
            double sum = 0, product = 0;
            for (int64_t b = 0; b < blocks; b++) {
                sum += sums[b * channels + c];
                product += products[b * channels + c];
            }
            product *= factor[c];
            bias_diff[c] = (REAL)sum;
            weight_diff[c] = (REAL)product;
            for (int64_t j = c; j < span; j += channels) {
                offset[j] = (REAL)(slope[c] * sum / (double)rows);
                by_x[j] = (REAL)((double)slope[c] * factor[c] * product / (double)rows);
            }
        }
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t at = b * block, here = least(block, count - at);
            NAME(transform_gradients)(x + at, (masked ? masked : top_diff) + at, here, span, of_mean, slope,
                                      of_bias, offset, by_x, relu && !masked, diff + at);
        }
    }
    free(sums);
    free(of_span);
    return failed;
}
