/* The gradient of a convolution's weights.

   diff[o][i][j][c] = sum over n, y, x of bottom[n][y s + i - p][x s + j - p][c] top_diff[n][y][x][o]

   The numbers under one row of a window lie side by side in memory (kernel_w times channels of them), once the
   bottom is copied to rows with zeros for padding. So for each row i of the kernel it is a product of two
   matrices, whose sums over some hundred pixels stay in registers: up to 6 of those numbers times up to 16
   outputs. */

enum { PIXELS = 512, JOBS = 8 };

/* Sums of one thread: short ones in single precision, after every JOBS jobs added up in double. */
typedef struct {
    int64_t size, jobs;
    float *recent;
    double *all;
} Sums;

AVX2 static void add_recent(Sums *s)
{
    for (int64_t i = 0; i < s->size; i++)
        s->all[i] += s->recent[i];
    memset(s->recent, 0, s->size * sizeof(float));
    s->jobs = 0;
}

static inline void job_done(Sums *s)
{
    if (++s->jobs == JOBS)
        add_recent(s);
}

/* Where the numbers of some pixels lie: images, rows and pixels, and the steps from one to the next. */
typedef struct {
    int64_t images, rows, width;
    int64_t x_image, x_row, x_pixel, top_image, top_row, top_pixel;
} Pixels;

/* out[k][o] += the sum over the pixels of x[k] top_diff[o], for k < side and o < vectors * VECTOR. */
INLINE_AVX2 void add_products(const int side, const int vectors, const float *x, const float *top_diff,
                              const Pixels *p, float *out, int64_t out_row)
{
    Vector sums[SIDE][2] = {0};
    for (int64_t i = 0; i < p->images; i++)
        for (int64_t r = 0; r < p->rows; r++) {
            const float *of_x = x + i * p->x_image + r * p->x_row;
            const float *of_top = top_diff + i * p->top_image + r * p->top_row;
#pragma GCC unroll 4
            for (int64_t w = 0; w < p->width; w++, of_x += p->x_pixel, of_top += p->top_pixel)
                add_outer(side, vectors, of_x, 1, of_top, sums);
        }
#pragma GCC unroll 6
    for (int k = 0; k < side; k++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            put(out + k * out_row + VECTOR * v, get(out + k * out_row + VECTOR * v) + sums[k][v]);
}

typedef void AddProducts(const float *, const float *, const Pixels *, float *, int64_t);

#define ADD_PRODUCTS(side, vectors)                                                                            \
    AVX2 static void add_products_##side##_##vectors(const float *x, const float *top_diff, const Pixels *p,   \
                                                     float *out, int64_t out_row)                              \
    {                                                                                                          \
        add_products(side, vectors, x, top_diff, p, out, out_row);                                             \
    }

EACH_SIZE(ADD_PRODUCTS)

static AddProducts *const ADD_PRODUCTS_OF[2][SIDE] = TABLE_OF(add_products);

/* Rows of an image, from `first` on, that may lie outside it, each with the zeros that pad it. */
static void padded_rows(const Conv *c, const float *image, int64_t first, int64_t rows, int64_t padded_width,
                        float *out)
{
    int64_t left = least(c->pad_w, padded_width), inside = least(c->width, padded_width - left);
    for (int64_t y = first; y < first + rows; y++, out += padded_width * c->channels) {
        if (y < 0 || y >= c->height) {
            memset(out, 0, padded_width * c->channels * sizeof(float));
            continue;
        }
        memset(out, 0, left * c->channels * sizeof(float));
        memcpy(out + left * c->channels, image + y * c->width * c->channels,
               inside * c->channels * sizeof(float));
        memset(out + (left + inside) * c->channels, 0,
               (padded_width - left - inside) * c->channels * sizeof(float));
    }
}

/* top_diff has a multiple of VECTOR channels. Returns 0, or 1 where there is no memory. */
int imae_conv_weight(const float *bottom, const float *top_diff, const Conv *c, int threads, float *diff)
{
    int64_t padded_width = (c->top_width - 1) * c->stride_w + c->kernel_w, row = padded_width * c->channels;
    int64_t side = c->kernel_w * c->channels, size = c->kernel_h * side * c->outputs;
    /* A job is some rows of an image, or some whole images. */
    int64_t tile = least(c->top_height, PIXELS / c->top_width > 1 ? PIXELS / c->top_width : 1);
    int64_t tiles = (c->top_height + tile - 1) / tile, pixels = c->top_height * c->top_width;
    int64_t group = pixels < PIXELS ? least(c->num, PIXELS / pixels) : 1;
    if (group > 1) { /* as many for each thread */
        int64_t groups = (c->num + group - 1) / group;
        groups = (groups + threads - 1) / threads * threads;
        group = (c->num + groups - 1) / groups;
    }
    int64_t jobs = (c->num + group - 1) / group * tiles, image = ((tile - 1) * c->stride_h + c->kernel_h) * row;
    double *all = calloc(threads * size, sizeof(double));
    float *recent = calloc(threads * size, sizeof(float));
    float *copies = malloc(threads * group * image * sizeof(float));
    int failed = !all || !recent || !copies;
    if (!failed) {
#pragma omp parallel num_threads(threads)
        {
            int64_t thread = omp_get_thread_num();
            Sums sums = {.size = size, .recent = recent + thread * size, .all = all + thread * size};
            float *copy = copies + thread * group * image;
#pragma omp for schedule(static)
            for (int64_t job = 0; job < jobs; job++) {
                int64_t n = job / tiles * group, y = job % tiles * tile;
                Pixels p = {.images = least(group, c->num - n),
                            .rows = least(tile, c->top_height - y),
                            .width = c->top_width,
                            .x_image = image,
                            .x_row = row * c->stride_h,
                            .x_pixel = c->channels * c->stride_w,
                            .top_image = pixels * c->outputs,
                            .top_row = c->top_width * c->outputs,
                            .top_pixel = c->outputs};
                for (int64_t i = 0; i < p.images; i++)
                    padded_rows(c, bottom + (n + i) * c->height * c->width * c->channels,
                                y * c->stride_h - c->pad_h, (p.rows - 1) * c->stride_h + c->kernel_h,
                                padded_width, copy + i * image);
                for (int64_t o = 0; o < c->outputs; o += 2 * VECTOR)
                    for (int64_t i = 0; i < c->kernel_h; i++)
                        for (int64_t k = 0; k < side; k += SIDE)
                            ADD_PRODUCTS_OF[c->outputs - o >= 2 * VECTOR][least(SIDE, side - k) - 1](
                                copy + i * row + k, top_diff + (n * pixels + y * c->top_width) * c->outputs + o,
                                &p, sums.recent + (i * side + k) * c->outputs + o, c->outputs);
                job_done(&sums);
            }
            add_recent(&sums);
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t k = 0; k < c->kernel_h * side; k++)
                for (int64_t o = 0; o < c->outputs; o++) {
                    double sum = 0;
                    for (int t = 0; t < threads; t++)
                        sum += all[t * size + k * c->outputs + o];
                    diff[o * c->kernel_h * side + k] = (float)sum;
                }
        }
    }
    free(all);
    free(recent);
    free(copies);
    return failed;
}
