/* The kernels in C on random shapes, beside plain loops in double precision: the largest error of each, of the
   largest value. For each instruction set that the processor has; the convolutions' kernels also for the bits
   of both widths of vectors. It needs no Python, so it runs under sanitizers, and in an emulator of processors
   with other instructions:

       gcc -O3 -static -std=gnu11 -fopenmp -fno-trapping-math -fno-math-errno .ci/kernels_check.c -lm -o check
       ./check 1e-6        the largest error that is allowed

   With -DWIDE_ON_AVX2 the kernels for AVX-512 are made of AVX2's instructions. */

#include "../net/kernels/kernels.c"

#include <stdio.h>

enum { SHAPES = 16, THREADS = 2 };

static uint32_t state = 1;

static int64_t drawn(int64_t least, int64_t most)
{
    state = state * 1664525u + 1013904223u;
    return least + (state >> 8) % (most - least + 1);
}

static float *numbers(int64_t count)
{
    float *x = new_floats(count + 1, 0);
    for (int64_t i = 0; i < count; i++)
        x[i] = (float)(drawn(0, 1 << 20) + drawn(0, 1 << 20) - (1 << 20)) / (1 << 19);
    return x;
}

static double *doubles(int64_t count)
{
    return calloc(count + 1, sizeof(double));
}

typedef struct {
    const char *isa;
    int (*batch_norm)(const float *, int64_t, int64_t, const float *, const float *, const float *, double, int,
                      int, float *, float *, float *, float *);
    int (*batch_norm_gradients)(const float *, const float *, const float *, int64_t, int64_t, const float *,
                                const float *, const float *, const float *, int, int, float *, float *,
                                float *, float *);
    int (*lrn)(const float *, const float *, int64_t, int64_t, int64_t, double, double, int, float *);
    void (*sgd)(int64_t, const int64_t *, float *const *, float *const *, float *const *, double, double,
                double, int);
} Kernels;

#define KERNELS(isa)                                                                                           \
    {#isa, imae_batch_norm_##isa##_float, imae_batch_norm_gradients_##isa##_float, imae_lrn_##isa##_float,     \
     imae_sgd_##isa##_float}

typedef struct {
    const char *isa;
    int vector;
    int (*winograd)(const float *, const float *, const int64_t *, int, const float *, const Conv *, int,
                    float *);
    int (*winograd_weight)(const float *, const float *, const Conv *, int, float *);
    int (*conv_weight)(const float *, const float *, const Conv *, int, float *);
} ConvKernels;

#define CONV_KERNELS(isa, vector)                                                                              \
    {#isa, vector, imae_winograd_##isa##_float, imae_winograd_weight_##isa##_float,                            \
     imae_conv_weight_##isa##_float}

static double limit, largest; /* of the errors of one kernel so far */
static int wrong;

static void compare(const float *got, const double *want, int64_t count)
{
    double most = 0, error = 0;
    for (int64_t i = 0; i < count; i++) {
        most = fmax(most, fabs(want[i]));
        error = isnan(got[i]) ? INFINITY : fmax(error, fabs(got[i] - want[i]));
    }
    largest = fmax(largest, most > 0 ? error / most : error);
}

static void print(const char *isa, const char *name)
{
    int bad = !(largest <= limit);
    printf("%-8s %-32s %.1e%s\n", isa, name, largest, bad ? "  WRONG" : "");
    wrong |= bad;
    largest = 0;
}

static void check_batch_norm(const Kernels *k, int gradients)
{
    for (int shape = 0; shape < SHAPES; shape++) {
        int64_t rows = drawn(2, 300), channels = drawn(1, 70), count = rows * channels;
        float *x = numbers(count), *shortcut = numbers(count), *diff = numbers(count),
              *weight = numbers(channels);
        float *bias = numbers(channels), *top = numbers(count), *values = numbers(5 * channels);
        float *masked = numbers(count), *x_diff = numbers(count);
        float *mean = values, *variance = mean + channels, *factor = variance + channels;
        float *weight_diff = factor + channels, *bias_diff = weight_diff + channels;
        double *tops = doubles(count), *diffs = doubles(count), *sums = doubles(2 * channels);
        k->batch_norm(x, rows, channels, weight, bias, shortcut, 1e-5, 1, THREADS, top, mean, variance, factor);
        k->batch_norm_gradients(x, top, diff, rows, channels, weight, bias, mean, factor, 1, THREADS, masked,
                                x_diff, weight_diff, bias_diff);
        for (int64_t c = 0; c < channels; c++) {
            double sum = 0, squares = 0;
            for (int64_t i = c; i < count; i += channels)
                sum += x[i];
            for (int64_t i = c; i < count; i += channels)
                squares += (x[i] - sum / rows) * (x[i] - sum / rows);
            double scale = 1 / sqrt(squares / rows + 1e-5);
            for (int64_t i = c; i < count; i += channels) {
                double normal = (x[i] - sum / rows) * scale, y = normal * weight[c] + bias[c] + shortcut[i];
                tops[i] = top[i] > 0 ? y : fmax(y, 0); /* near 0 the kernel has decided */
                tops[i] = top[i] > 0 || y > 1e-5 ? tops[i] : 0;
                sums[c] += top[i] > 0 ? diff[i] * normal : 0;
                sums[channels + c] += top[i] > 0 ? diff[i] : 0;
            }
            for (int64_t i = c; i < count; i += channels) {
                double normal = (x[i] - sum / rows) * scale, d = top[i] > 0 ? diff[i] : 0;
                diffs[i] = weight[c] * scale * (d - sums[channels + c] / rows - normal * sums[c] / rows);
            }
        }
        if (gradients) {
            compare(x_diff, diffs, rows > 8 ? count : 0); /* of few rows little but rounding is left */
            compare(weight_diff, sums, channels);
            compare(bias_diff, sums + channels, channels);
        } else
            compare(top, tops, count);
        void *all[] = {x, shortcut, diff, weight, bias, top, values, masked, x_diff, tops, diffs, sums};
        for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
            free(all[i]);
    }
    print(k->isa, gradients ? "batch_norm_gradients" : "batch_norm");
}

static void check_lrn(const Kernels *k)
{
    for (int shape = 0; shape < SHAPES; shape++) {
        int64_t rows = drawn(1, 40), channels = drawn(1, 70), size = 2 * drawn(0, 4) + 1, half = size / 2;
        float *x = numbers(rows * channels), *got = numbers(rows * channels);
        double *want = doubles(rows * channels);
        k->lrn(x, NULL, rows, channels, size, 2.0, 1.5, THREADS, got);
        for (int64_t i = 0; i < rows * channels; i++) {
            double sum = 0;
            for (int64_t j = -half; j <= half; j++)
                if (i % channels + j >= 0 && i % channels + j < channels)
                    sum += (double)x[i + j] * x[i + j];
            want[i] = x[i] / pow(1.5 + 2.0 / size * sum, 0.75);
        }
        compare(got, want, rows * channels);
        free(x), free(got), free(want);
    }
    print(k->isa, "lrn");
}

static void check_sgd(const Kernels *k)
{
    for (int shape = 0; shape < SHAPES; shape++) {
        int64_t count = drawn(1, 40000);
        float *weight = numbers(count), *diff = numbers(count), *history = numbers(count);
        double *want = doubles(count), *change = doubles(count);
        for (int64_t i = 0; i < count; i++) {
            change[i] = 0.1 * (diff[i] + 0.01 * weight[i]) + 0.9 * history[i];
            want[i] = weight[i] - change[i];
        }
        k->sgd(1, &count, &weight, &diff, &history, 0.01, 0.9, 0.1, THREADS);
        compare(weight, want, count);
        compare(history, change, count);
        free(weight), free(diff), free(history), free(want), free(change);
    }
    print(k->isa, "sgd");
}

#if HAS_CONV_KERNELS

static Conv drawn_conv(int plain)
{
    Conv c = {.num = drawn(1, 2), .height = drawn(1, 11), .width = drawn(1, 11), .outputs = 16 * drawn(1, 3)};
    c.channels = plain ? 16 * drawn(1, 3) : drawn(1, 20);
    c.kernel_h = plain ? 3 : drawn(1, 5), c.kernel_w = plain ? 3 : drawn(1, 5);
    c.stride_h = plain ? 1 : drawn(1, 3), c.stride_w = plain ? 1 : drawn(1, 3);
    c.pad_h = drawn(0, 2), c.pad_w = drawn(0, 2);
    c.height += c.kernel_h, c.width += c.kernel_w;
    c.top_height = (c.height + 2 * c.pad_h - c.kernel_h) / c.stride_h + 1;
    c.top_width = (c.width + 2 * c.pad_w - c.kernel_w) / c.stride_w + 1;
    return c;
}

/* For each product of a number of the bottom with a weight: top += or diff += it; weight[o][i][j][c]. */
static void convolve(const Conv *c, const float *bottom, const float *weight, const float *bias, double *top,
                     const float *top_diff, double *diff)
{
    for (int64_t t = 0; t < c->num * c->top_height * c->top_width; t++) {
        int64_t n = t / c->top_width / c->top_height, y = t / c->top_width % c->top_height,
                x = t % c->top_width;
        for (int64_t o = 0; o < c->outputs && bias; o++)
            top[t * c->outputs + o] = bias[o];
        for (int64_t k = 0; k < c->kernel_h * c->kernel_w; k++) {
            int64_t v = y * c->stride_h - c->pad_h + k / c->kernel_w,
                    u = x * c->stride_w - c->pad_w + k % c->kernel_w;
            if (v < 0 || v >= c->height || u < 0 || u >= c->width)
                continue;
            const float *pixel = bottom + ((n * c->height + v) * c->width + u) * c->channels;
            for (int64_t o = 0; o < c->outputs; o++)
                for (int64_t i = 0; i < c->channels; i++) {
                    int64_t at = (o * c->kernel_h * c->kernel_w + k) * c->channels + i;
                    if (top)
                        top[t * c->outputs + o] += (double)pixel[i] * weight[at];
                    else
                        diff[at] += (double)pixel[i] * top_diff[t * c->outputs + o];
                }
        }
    }
}

static void check_convolutions(const ConvKernels *kernels, int count)
{
    static const char *NAMES[] = {"winograd", "winograd_weight", "conv_weight"};
    double errors[3][2] = {{0}};
    int same = 1;
    for (int kernel = 0; kernel < 3; kernel++)
        for (int shape = 0; shape < SHAPES; shape++) {
            Conv c = drawn_conv(kernel < 2);
            int64_t tops = c.num * c.top_height * c.top_width * c.outputs, window = c.kernel_h * c.kernel_w;
            int64_t weights = c.outputs * window * c.channels, size = kernel ? weights : tops;
            int64_t strides[] = {window * c.channels, 1, c.kernel_w * c.channels, c.channels};
            float *bottom = numbers(c.num * c.height * c.width * c.channels), *weight = numbers(weights);
            float *bias = numbers(c.outputs), *top_diff = numbers(tops), *got = numbers(2 * size);
            double *want = doubles(size);
            convolve(&c, bottom, weight, kernel ? NULL : bias, kernel ? NULL : want, top_diff, want);
            for (int i = 0; i < count; i++) {
                const ConvKernels *k = kernels + i;
                float *out = got + i * size;
                if (kernel == 0)
                    k->winograd(bottom, weight, strides, 0, bias, &c, THREADS, out);
                else
                    (kernel == 1 ? k->winograd_weight : k->conv_weight)(bottom, top_diff, &c, THREADS, out);
                largest = errors[kernel][i];
                compare(out, want, size);
                errors[kernel][i] = largest;
            }
            same &= count < 2 || !memcmp(got, got + size, size * sizeof(float));
            free(bottom), free(weight), free(bias), free(top_diff), free(got), free(want);
        }
    for (int i = 0; i < count; i++)
        for (int kernel = 0; kernel < 3; kernel++) {
            largest = errors[kernel][i];
            print(kernels[i].isa, NAMES[kernel]);
        }
    if (count > 1)
        printf("%s, %s: %s\n", kernels[0].isa, kernels[1].isa, same ? "the same bits" : "other bits  WRONG");
    wrong |= !same;
}

#if HAS_AMX

/* Images and windows of all sizes, of one job and of several; the numbers are such that bfloat16 holds them. */
static void check_tiles(void)
{
    for (int shape = 0; shape < SHAPES; shape++) {
        Conv c = {.num = drawn(1, 9), .outputs = 16 * drawn(1, 3), .channels = 16 * drawn(1, 3), .stride_h = 1};
        c.stride_w = 1, c.pad_h = drawn(0, 2), c.pad_w = drawn(0, 2);
        c.kernel_h = 2 * c.pad_h + 1, c.kernel_w = 2 * c.pad_w + 1;
        c.top_height = c.height = drawn(1, shape % 4 ? 12 : 60), c.top_width = c.width = drawn(1, shape % 4 ? 12 : 60);
        int64_t pixels = c.num * c.height * c.width, window = c.kernel_h * c.kernel_w;
        int64_t size = c.outputs * window * c.channels;
        float *bottom = numbers(pixels * c.channels), *top_diff = numbers(pixels * c.outputs), *got = numbers(size);
        bfloat16 *of_bottom = malloc(pixels * c.channels * sizeof(bfloat16));
        bfloat16 *of_top = malloc(pixels * c.outputs * sizeof(bfloat16));
        double *want = doubles(size);
        for (int64_t i = 0; i < pixels * c.channels; i++)
            bottom[i] = from_bfloat16(of_bottom[i] = to_bfloat16(bottom[i]));
        for (int64_t i = 0; i < pixels * c.outputs; i++)
            top_diff[i] = from_bfloat16(of_top[i] = to_bfloat16(top_diff[i]));
        convolve(&c, bottom, NULL, NULL, NULL, top_diff, want);
        imae_conv_weight_bfloat16(of_bottom, of_top, &c, THREADS, got);
        compare(got, want, size);
        free(bottom), free(top_diff), free(got), free(of_bottom), free(of_top), free(want);
    }
    print("amx", "conv_weight_bfloat16");
}

#endif

#endif

int main(int count, char **words)
{
    limit = count > 1 ? atof(words[1]) : 1e-6;
    Kernels kernels[3] = {KERNELS(default)};
    int sets = 1;
#if HAS_CONV_KERNELS
    if (imae_has_avx2())
        kernels[sets++] = (Kernels)KERNELS(avx2);
    if (imae_has_avx512f())
        kernels[sets++] = (Kernels)KERNELS(avx512f);
#endif
    for (int i = 0; i < sets; i++) {
        state = 1;
        check_batch_norm(kernels + i, 0);
        check_batch_norm(kernels + i, 1);
        check_lrn(kernels + i);
        check_sgd(kernels + i);
    }
#if HAS_CONV_KERNELS
    ConvKernels convs[] = {CONV_KERNELS(avx2, 8), CONV_KERNELS(avx512f, 16)};
#ifdef WIDE_ON_AVX2
    int wide = imae_has_avx2();
#else
    int wide = imae_has_avx512f();
#endif
    if (imae_has_avx2() && imae_has_fma())
        check_convolutions(convs, wide ? 2 : 1);
#if HAS_AMX
    if (imae_has_amx())
        check_tiles();
#endif
#endif
    return wrong;
}
