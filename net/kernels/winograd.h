/* Convolutions with a window of 3x3 pixels and a stride of 1, by Winograd's F(2x2, 3x3): 16 products for four
   pixels of the top instead of 36 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
   2016, equations 8 to 12).

   A tile is 2x2 pixels of the top; it sees 4x4 pixels of the bottom.

       top          = A^T [sum over channels of (G weight G^T) . (B^T bottom B)] A
       bottom diff  = the same of top_diff, the weights turned by 180 degrees
       weights diff = G^T [sum over tiles of (B^T bottom B) . (A top_diff A^T)] G

             1  0 -1  0         1    0    0            1  0
       B^T = 0  1  1  0     G = 1/2  1/2  1/2      A = 1  1
             0 -1  1  0         1/2 -1/2  1/2          1 -1
             0  1  0 -1         0    0    1            0 -1

   The sums are shorter than a plain convolution's, and B and A only add: the values are not less exact. Each of
   the 16 places of a transformed tile is a product of two matrices. */

enum { PLACES = 16, TILES = 24, WIDE = 2 * VECTOR };

/* From one place's numbers to the next's, of so many tiles: no multiple of what a cache's ways are apart. */
static int64_t place_step(int64_t tiles, int64_t channels)
{
    return tiles * channels + 16;
}

/* Image, row and column of the top at which a tile begins. */
typedef struct {
    int64_t n, y, x;
} Tile;

static inline int64_t tiles_of(const Conv *c)
{
    return c->num * ((c->top_height + 1) / 2) * ((c->top_width + 1) / 2);
}

static inline Tile tile_of(const Conv *c, int64_t number)
{
    int64_t rows = (c->top_height + 1) / 2, columns = (c->top_width + 1) / 2;
    return (Tile){number / columns / rows, number / columns % rows * 2, number % columns * 2};
}

static inline void to_next(const Conv *c, Tile *t)
{
    if ((t->x += 2) < c->top_width)
        return;
    t->x = 0;
    if ((t->y += 2) < c->top_height)
        return;
    t->y = 0;
    t->n++;
}

/* B^T of a column of four pixels. */
INLINE_AVX2 void transform_column(const float *const rows[4], int64_t at, int inside, Vector out[4])
{
    if (!inside) {
        out[0] = out[1] = out[2] = out[3] = (Vector){0};
        return;
    }
    Vector a = get(rows[0] + at), b = get(rows[1] + at), c = get(rows[2] + at), d = get(rows[3] + at);
    out[0] = a - c;
    out[1] = b + c;
    out[2] = c - b;
    out[3] = b - d;
}

/* B^T bottom B of tiles side by side, the first of which sees column x and on: out[place][tile][channel]. */
INLINE_AVX2 void transform_run(const float *const rows[4], int64_t width, int64_t channels, int64_t x,
                               int64_t tiles, float *out, int64_t step)
{
    for (int64_t c = 0; c < channels; c += VECTOR) {
        Vector t[4], u[4], v[4], w[4];
        const float *next = rows[3] + width * channels + c; /* the next tiles' rows */
        float *to = out + c;
        transform_column(rows, x * channels + c, x >= 0 && x < width, t);
        transform_column(rows, (x + 1) * channels + c, x + 1 >= 0 && x + 1 < width, u);
        for (int64_t i = 0, at = x + 2; i < tiles; i++, at += 2, to += channels) {
            transform_column(rows, at * channels + c, at >= 0 && at < width, v);
            transform_column(rows, (at + 1) * channels + c, at + 1 >= 0 && at + 1 < width, w);
            if (c % WIDE == 0)
                for (int p = 0; p < 4; p++)
                    __builtin_prefetch(next + (at + p % 2 + p / 2 * width) * channels);
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                put(to + (4 * k + 0) * step, t[k] - v[k]);
                put(to + (4 * k + 1) * step, u[k] + v[k]);
                put(to + (4 * k + 2) * step, v[k] - u[k]);
                put(to + (4 * k + 3) * step, u[k] - w[k]);
                t[k] = v[k];
                u[k] = w[k];
            }
        }
    }
}

/* The same of tiles from number `first` of all images on; `zeros` is a row outside of an image. */
AVX2 static void transform_bottom(const Conv *c, const float *bottom, const float *zeros, int64_t first,
                                  int64_t tiles, float *out, int64_t step)
{
    int64_t row = c->width * c->channels;
    for (int64_t run; tiles > 0; first += run, tiles -= run, out += run * c->channels) {
        Tile t = tile_of(c, first);
        const float *of[4];
        for (int64_t i = 0, y = t.y - c->pad_h; i < 4; i++, y++)
            of[i] = y < 0 || y >= c->height ? zeros : bottom + (t.n * c->height + y) * row;
        run = least(tiles, (c->top_width + 1 - t.x) / 2);
        transform_run(of, c->width, c->channels, t.x - c->pad_w, run, out, step);
    }
}

/* out[t][o] = sum over the channels of x[t] weight[][o], for t < side and o < vectors * VECTOR. */
INLINE_AVX2 void multiply(const int side, const int vectors, const float *x, int64_t channels,
                          const float *weight, float *out)
{
    Vector sums[SIDE][2] = {0};
    for (int64_t c = 0; c < channels; c++, weight += vectors * VECTOR)
        add_outer(side, vectors, x + c, channels, weight, sums);
#pragma GCC unroll 6
    for (int t = 0; t < side; t++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            put(out + t * WIDE + VECTOR * v, sums[t][v]);
}

typedef void Multiply(const float *, int64_t, const float *, float *);

#define MULTIPLY(side, vectors)                                                                                \
    AVX2 static void multiply_##side##_##vectors(const float *x, int64_t channels, const float *weight,        \
                                                 float *out)                                                   \
    {                                                                                                          \
        multiply(side, vectors, x, channels, weight, out);                                                     \
    }

EACH_SIZE(MULTIPLY)

static Multiply *const MULTIPLY_OF[2][SIDE] = TABLE_OF(multiply);

/* A^T of a column of four. */
INLINE_AVX2 void gather_column(Vector a, Vector b, Vector c, Vector d, Vector out[2])
{
    out[0] = a + b + c;
    out[1] = b - c - d;
}

/* The tiles' pixels of `vectors` * VECTOR outputs, from products[place][tile][output]. */
AVX2 static void write_top(const Conv *c, const float *products, int64_t step, int64_t first, int64_t tiles,
                           int vectors, const float *bias, float *top)
{
    int64_t row = c->top_width * c->outputs;
    Tile t = tile_of(c, first);
    for (; tiles > 0; tiles--, to_next(c, &t), products += WIDE) {
        float *to = top + (t.n * c->top_height + t.y) * row + t.x * c->outputs;
        int right = t.x + 1 < c->top_width, below = t.y + 1 < c->top_height;
        for (int p = 0; p < 4; p++)
            __builtin_prefetch(to + (12 + p % 2) * c->outputs + p / 2 * row, 1);
        for (int v = 0; v < vectors; v++, to += VECTOR) {
            Vector half[4][2], whole[2][2], b = bias ? get(bias + VECTOR * v) : (Vector){0};
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                const float *of = products + 4 * i * step + VECTOR * v;
                gather_column(get(of), get(of + step), get(of + 2 * step), get(of + 3 * step), half[i]);
            }
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) {
                Vector column[2];
                gather_column(half[0][j], half[1][j], half[2][j], half[3][j], column);
                whole[0][j] = column[0] + b;
                whole[1][j] = column[1] + b;
            }
            put(to, whole[0][0]);
            if (right)
                put(to + c->outputs, whole[0][1]);
            if (below)
                put(to + row, whole[1][0]);
            if (right && below)
                put(to + row + c->outputs, whole[1][1]);
        }
    }
}

/* G of three. */
INLINE_AVX2 void transform_three(Vector a, Vector b, Vector c, Vector out[4])
{
    out[0] = a;
    out[1] = (a + b + c) * 0.5f;
    out[2] = (a - b + c) * 0.5f;
    out[3] = c;
}

/* G weight G^T of VECTOR outputs: out[place][channel][wide]. */
AVX2 static void transform_weights(const float *weight, const int64_t *strides, int turned, int64_t channels,
                                   int64_t wide, float *out)
{
    for (int64_t c = 0; c < channels; c++, weight += strides[1], out += wide) {
        Vector g[3][3], half[3][4];
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < 3; j++) {
                int64_t at = (turned ? 2 - i : i) * strides[2] + (turned ? 2 - j : j) * strides[3];
                for (int o = 0; o < VECTOR; o++)
                    g[i][j][o] = weight[at + o * strides[0]];
            }
        for (int i = 0; i < 3; i++)
            transform_three(g[i][0], g[i][1], g[i][2], half[i]);
        for (int j = 0; j < 4; j++) {
            Vector column[4];
            transform_three(half[0][j], half[1][j], half[2][j], column);
            for (int i = 0; i < 4; i++)
                put(out + (4 * i + j) * channels * wide, column[i]);
        }
    }
}

/* top = bottom convolved with weight[o][c][i][j], which are strides[0], ... numbers apart, or with the weights
   turned by 180 degrees; plus bias, which may be missing. Channels and outputs are multiples of VECTOR.
   Returns 0, or 1 where there is no memory. */
int imae_winograd(const float *bottom, const float *weight, const int64_t *strides, int turned,
                  const float *bias, const Conv *c, int threads, float *top)
{
    int64_t tiles = tiles_of(c);
    int64_t step = place_step(TILES, c->channels), product_step = place_step(TILES, WIDE);
    int64_t own_size = PLACES * (step + product_step), row = c->width * c->channels;
    /* of[output / WIDE][place][channel][output % WIDE] */
    float *of = malloc(PLACES * c->channels * c->outputs * sizeof(float));
    float *zeros = calloc(row, sizeof(float)), *room = malloc(threads * own_size * sizeof(float));
    int failed = !of || !zeros || !room;
    if (!failed) {
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(static)
            for (int64_t o = 0; o < c->outputs; o += VECTOR) {
                int64_t block = o / WIDE * WIDE, wide = least(WIDE, c->outputs - block);
                transform_weights(weight + o * strides[0], strides, turned, c->channels, wide,
                                  of + block * PLACES * c->channels + o - block);
            }
            float *own = room + omp_get_thread_num() * own_size, *products = own + PLACES * step;
#pragma omp for schedule(static)
            for (int64_t first = 0; first < tiles; first += TILES) {
                int64_t here = least(TILES, tiles - first);
                transform_bottom(c, bottom, zeros, first, here, own, step);
                for (int64_t o = 0; o < c->outputs; o += WIDE) {
                    int vectors = c->outputs - o >= WIDE ? 2 : 1;
                    const float *factor = of + o * PLACES * c->channels;
                    for (int p = 0; p < PLACES; p++, factor += c->channels * vectors * VECTOR)
                        for (int64_t t = 0; t < here; t += SIDE)
                            MULTIPLY_OF[vectors - 1][least(SIDE, here - t) - 1](
                                own + p * step + t * c->channels, c->channels, factor,
                                products + p * product_step + t * WIDE);
                    write_top(c, products, product_step, first, here, vectors, bias ? bias + o : NULL, top + o);
                }
            }
        }
    }
    free(of);
    free(zeros);
    free(room);
    return failed;
}

/* A of two. */
INLINE_AVX2 void spread_two(Vector a, Vector b, Vector out[4])
{
    out[0] = a;
    out[1] = a + b;
    out[2] = a - b;
    out[3] = -b;
}

/* A top_diff A^T of tiles from number `first` of all images on: out[place][tile][output]. */
AVX2 static void transform_top_diff(const Conv *c, const float *top_diff, int64_t first, int64_t tiles,
                                    float *out, int64_t step)
{
    int64_t row = c->top_width * c->outputs;
    Tile t = tile_of(c, first);
    for (; tiles > 0; tiles--, to_next(c, &t), out += c->outputs) {
        const float *of = top_diff + (t.n * c->top_height + t.y) * row + t.x * c->outputs;
        int right = t.x + 1 < c->top_width, below = t.y + 1 < c->top_height;
        for (int64_t o = 0; o < c->outputs; o += VECTOR, of += VECTOR) {
            if (o % WIDE == 0)
                for (int p = 0; p < 4; p++)
                    __builtin_prefetch(of + (2 + p / 2) * row + p % 2 * c->outputs);
            Vector none = {0}, half[2][4];
            spread_two(get(of), right ? get(of + c->outputs) : none, half[0]);
            spread_two(below ? get(of + row) : none, right && below ? get(of + row + c->outputs) : none,
                       half[1]);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                Vector column[4];
                spread_two(half[0][j], half[1][j], column);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++)
                    put(out + o + (4 * i + j) * step, column[i]);
            }
        }
    }
}

/* G^T of four. */
static inline void gather_three(double a, double b, double c, double d, double out[3])
{
    out[0] = a + 0.5 * (b + c);
    out[1] = 0.5 * (b - c);
    out[2] = 0.5 * (b + c) + d;
}

/* diff[o][i][j][c]. Channels and outputs are multiples of VECTOR. Returns 0, or 1 where there is no memory. */
int imae_winograd_weight(const float *bottom, const float *top_diff, const Conv *c, int threads, float *diff)
{
    int64_t tiles = tiles_of(c);
    int64_t group = c->channels + c->outputs > 128 ? 64 : 96; /* tiles, whose numbers are to stay in the cache */
    int64_t step = place_step(group, c->channels), top_step = place_step(group, c->outputs);
    int64_t own_size = PLACES * (step + top_step), size = PLACES * c->channels * c->outputs;
    int64_t row = c->width * c->channels;
    double *all = calloc(threads * size, sizeof(double)); /* [thread][place][channel][output] */
    float *recent = calloc(threads * size, sizeof(float));
    float *zeros = calloc(row, sizeof(float)), *room = malloc(threads * own_size * sizeof(float));
    int failed = !all || !recent || !zeros || !room;
    if (!failed) {
#pragma omp parallel num_threads(threads)
        {
            int64_t thread = omp_get_thread_num();
            Sums sums = {.size = size, .recent = recent + thread * size, .all = all + thread * size};
            float *own = room + thread * own_size, *of_top = own + PLACES * step;
#pragma omp for schedule(static)
            for (int64_t first = 0; first < tiles; first += group) {
                Pixels p = {.images = 1,
                            .rows = 1,
                            .width = least(group, tiles - first),
                            .x_pixel = c->channels,
                            .top_pixel = c->outputs};
                transform_bottom(c, bottom, zeros, first, p.width, own, step);
                transform_top_diff(c, top_diff, first, p.width, of_top, top_step);
                for (int64_t place = 0; place < PLACES; place++)
                    for (int64_t o = 0; o < c->outputs; o += WIDE)
                        for (int64_t i = 0; i < c->channels; i += SIDE)
                            ADD_PRODUCTS_OF[c->outputs - o >= WIDE][least(SIDE, c->channels - i) - 1](
                                own + place * step + i, of_top + place * top_step + o, &p,
                                sums.recent + (place * c->channels + i) * c->outputs + o, c->outputs);
                job_done(&sums);
            }
            add_recent(&sums);
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t i = 0; i < c->channels; i++)
                for (int64_t o = 0; o < c->outputs; o++) {
                    double sum[PLACES] = {0}, half[4][3], column[3];
                    for (int t = 0; t < threads; t++)
                        for (int p = 0; p < PLACES; p++)
                            sum[p] += all[t * size + (p * c->channels + i) * c->outputs + o];
                    for (int k = 0; k < 4; k++)
                        gather_three(sum[4 * k], sum[4 * k + 1], sum[4 * k + 2], sum[4 * k + 3], half[k]);
                    for (int j = 0; j < 3; j++) {
                        gather_three(half[0][j], half[1][j], half[2][j], half[3][j], column);
                        for (int k = 0; k < 3; k++)
                            diff[((o * 3 + k) * 3 + j) * c->channels + i] = (float)column[k];
                    }
                }
        }
    }
    free(all);
    free(recent);
    free(zeros);
    free(room);
    return failed;
}
