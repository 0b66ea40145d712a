/* The suppression of boxes that overlap a better one, as layers/forks/boxes.py does it, number for number. */

#ifndef SUPPRESS_H
#define SUPPRESS_H

#include "common.h"

#if defined(__GNUC__) && !defined(__clang__)
#define EXACT __attribute__((optimize("fp-contract=off"))) /* no fused multiply-add */
#else
#define EXACT
#endif

enum { AT_ONCE = 32 };

/* NaN if one of them is NaN, as in torch.minimum and maximum. */
#define MIN_OR_NAN(a, b) ((a) < (b) || (a) != (a) ? (a) : (b))
#define MAX_OR_NAN(a, b) ((a) > (b) || (a) != (a) ? (a) : (b))

EXACT static inline float box_size(const float *box)
{
    float width = box[2] - box[0], height = box[3] - box[1];
    return width < 0 || height < 0 ? 0 : width * height;
}

/* Whether the overlap of a box with one of `count` others is not at most the threshold.
   kept: xmin, ymin, xmax, ymax, size of the others, `step` numbers apart. */
EXACT static int overlaps_any(const float *box, float size, const float *kept, int64_t step, int64_t count,
                              float threshold)
{
    for (int64_t first = 0; first < count; first += AT_ONCE) {
        int64_t end = minimum(count, first + AT_ONCE);
        int any = 0;
        for (int64_t k = first; k < end; k++) {
            float right = MIN_OR_NAN(box[2], kept[2 * step + k]), left = MAX_OR_NAN(box[0], kept[k]);
            float low = MIN_OR_NAN(box[3], kept[3 * step + k]), high = MAX_OR_NAN(box[1], kept[step + k]);
            float width = right - left, height = low - high;
            width = width < 0 ? 0 : width;
            height = height < 0 ? 0 : height;
            float shared = width * height;
            float overlap = shared > 0 ? shared / (size + kept[4 * step + k] - shared) : 0;
            any |= !(overlap <= threshold);
        }
        if (any)
            return 1;
    }
    return 0;
}

/* boxes: count rows of xmin, ymin, xmax, ymax, the best first; stays[i]: whether box i overlaps no better one
   that stays by more than the threshold. Returns 0, or 1 if memory cannot be allocated. */
EXACT int imae_suppress(const float *boxes, int64_t count, float threshold, unsigned char *stays)
{
    float *kept = malloc((5 * count + 1) * sizeof(float));
    int64_t kept_count = 0;
    if (!kept)
        return 1;
    for (int64_t i = 0; i < count; i++) {
        const float *box = boxes + 4 * i;
        float size = box_size(box);
        stays[i] = !overlaps_any(box, size, kept, count, kept_count, threshold);
        if (!stays[i])
            continue;
        for (int j = 0; j < 4; j++)
            kept[j * count + kept_count] = box[j];
        kept[4 * count + kept_count++] = size;
    }
    free(kept);
    return 0;
}

#endif
