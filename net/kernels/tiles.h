/* AMX's tiles of 16 rows of 16 words: a word is a sum in single precision, or two numbers of bfloat16.

   TILE_PRODUCT(sums, a, b): sums[i][j] += (sum over the 16 words k of a[i][k][0] b[k][j][0])
                                         + (sum over k of a[i][k][1] b[k][j][1])
   The numbers of the tiles are constants. With WIDE_ON_AVX2 all of it is in plain C, so that the tests can run
   what uses it on any processor. Included after bfloat16.h. */

#ifndef TILES_H
#define TILES_H

#include "common.h"

enum { TILE_SIDE = 16, TILE_DEPTH = 32 }; /* rows; numbers of bfloat16 in a row */

#ifndef WIDE_ON_AVX2

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TILES_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,amx-tile,amx-bf16")))
#define TILE_LOAD(tile, from, bytes) _tile_loadd(tile, from, bytes) /* `bytes` from one row to the next */
#define TILE_STORE(tile, to, bytes) _tile_stored(tile, to, bytes)
#define TILE_PRODUCT(sums, a, b) _tile_dpbf16ps(sums, a, b)
#define RELEASE_TILES() _tile_release()

/* Each thread says how it uses the tiles. */
TILES_TARGET static void configure_tiles(void)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        config.row_bytes[tile] = TILE_DEPTH * sizeof(bfloat16);
        config.rows[tile] = TILE_SIDE;
    }
    _tile_loadconfig(&config);
}

/* Whether this processor and system have what is used here. Linux gives a process the tiles if it asks. */
static int has_tiles(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18, BFLOAT16_PRODUCTS = 22, TILES = 24 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> BFLOAT16_PRODUCTS & 1 && d >> TILES & 1 &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

TILES_TARGET static inline __m256i sixteen(const bfloat16 *x)
{
    return x ? _mm256_loadu_si256((const __m256i *)x) : _mm256_setzero_si256();
}

/* 16 numbers of two pixels side by side: of even and odd number 0, of both number 1, and so on. */
TILES_TARGET static inline __m512i paired(const bfloat16 *even, const bfloat16 *odd)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                           6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(sixteen(even)), sixteen(odd), 1);
    return _mm512_permutexvar_epi16(order, both);
}

/* The same in memory; NULL is a pixel of zeros. */
TILES_TARGET static inline void write_pair(const bfloat16 *even, const bfloat16 *odd, bfloat16 *out)
{
    _mm512_storeu_si512(out, paired(even, odd));
}

/* 32 pixels of 16 numbers, each at pixels[k] + at, to 16 rows of 32 numbers. */
TILES_TARGET static inline void transpose_tile(const bfloat16 *const *pixels, int64_t at, bfloat16 *out, int64_t row)
{
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int q = 0; q < 16; q++)
        a[q] = paired(pixels[2 * q] + at, pixels[2 * q + 1] + at);
#pragma GCC unroll 8
    for (int q = 0; q < 16; q += 2) {
        b[q] = _mm512_unpacklo_epi32(a[q], a[q + 1]);
        b[q + 1] = _mm512_unpackhi_epi32(a[q], a[q + 1]);
    }
#pragma GCC unroll 4
    for (int q = 0; q < 16; q += 4) {
        a[q] = _mm512_unpacklo_epi64(b[q], b[q + 2]);
        a[q + 1] = _mm512_unpackhi_epi64(b[q], b[q + 2]);
        a[q + 2] = _mm512_unpacklo_epi64(b[q + 1], b[q + 3]);
        a[q + 3] = _mm512_unpackhi_epi64(b[q + 1], b[q + 3]);
    }
    /* Quarter k of a[4 q + r] is number 4 k + r of the pairs 4 q to 4 q + 3. */
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        __m512i even_low = _mm512_shuffle_i32x4(a[r], a[4 + r], 0x88);
        __m512i odd_low = _mm512_shuffle_i32x4(a[r], a[4 + r], 0xdd);
        __m512i even_high = _mm512_shuffle_i32x4(a[8 + r], a[12 + r], 0x88);
        __m512i odd_high = _mm512_shuffle_i32x4(a[8 + r], a[12 + r], 0xdd);
        _mm512_storeu_si512(out + r * row, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
        _mm512_storeu_si512(out + (4 + r) * row, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
        _mm512_storeu_si512(out + (8 + r) * row, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
        _mm512_storeu_si512(out + (12 + r) * row, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
    }
}

#else

#define TILES_TARGET
#define TILE_LOAD(tile, from, bytes) load_tile(tile, (const char *)(from), bytes)
#define TILE_STORE(tile, to, bytes) store_tile(tile, (char *)(to), bytes)
#define TILE_PRODUCT(sums, a, b) add_product(sums, a, b)
#define RELEASE_TILES() configure_tiles()

static __thread union {
    float sums[TILE_SIDE][TILE_SIDE];
    bfloat16 numbers[TILE_SIDE][TILE_DEPTH];
} tiles[8];

static void configure_tiles(void)
{
    memset(tiles, 0, sizeof(tiles));
}

static int has_tiles(void)
{
    return 1;
}

static void load_tile(int tile, const char *from, int64_t bytes)
{
    for (int i = 0; i < TILE_SIDE; i++)
        memcpy(tiles[tile].sums[i], from + i * bytes, sizeof(tiles[tile].sums[i]));
}

static void store_tile(int tile, char *to, int64_t bytes)
{
    for (int i = 0; i < TILE_SIDE; i++)
        memcpy(to + i * bytes, tiles[tile].sums[i], sizeof(tiles[tile].sums[i]));
}

static void add_product(int sums, int a, int b)
{
    for (int i = 0; i < TILE_SIDE; i++)
        for (int j = 0; j < TILE_SIDE; j++) {
            float of_pair[2] = {0};
            for (int k = 0; k < TILE_DEPTH; k++)
                of_pair[k % 2] += from_bfloat16(tiles[a].numbers[i][k]) *
                                  from_bfloat16(tiles[b].numbers[k / 2][2 * j + k % 2]);
            tiles[sums].sums[i][j] += of_pair[0] + of_pair[1];
        }
}

static void write_pair(const bfloat16 *even, const bfloat16 *odd, bfloat16 *out)
{
    for (int i = 0; i < TILE_SIDE; i++) {
        out[2 * i] = even ? even[i] : 0;
        out[2 * i + 1] = odd ? odd[i] : 0;
    }
}

static void transpose_tile(const bfloat16 *const *pixels, int64_t at, bfloat16 *out, int64_t row)
{
    for (int i = 0; i < TILE_SIDE; i++)
        for (int k = 0; k < TILE_DEPTH; k++)
            out[i * row + k] = pixels[k][at + i];
}

#endif

#endif
