// Fake quantization of float32 blocks in one pass, equal to the bit to scales.py and elements.py.
//
// Every float operation below is one IEEE float32 operation in the order of the Python code: compile without
// -ffast-math and without contraction to fused multiply-adds. Comments say only what differs from there.

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { INT, FLOAT, LEVELS };                             // element
enum { GIVEN, E8M0, EXACT, ROUNDED, BFLOAT16, ROUNDED_E4M3 };  // scale
enum { MAX_LEVELS = 16, MAX_CANDIDATES = 24 };
enum { CHUNK = 64, TILE = 1 << 14 };  // blocks whose scales are computed side by side, and their elements

#define INLINE static inline __attribute__((always_inline))
#define MAX_FINITE 0x7F7FFFFF

typedef struct {
    int32_t element, scale, asymmetric;
    float low, high, unit, inverse_unit;        // int: smallest and largest code; float: largest value in high
    int32_t min_exponent, magic_shift;          // float: both already in place as float32 exponent bits
    int32_t levels;
    float values[MAX_LEVELS], edges[MAX_LEVELS];
    int32_t candidates;                         // of scale_search; without it there is one
    float divisors[MAX_CANDIDATES], ratios[MAX_CANDIDATES], scale_low, scale_high;
    int32_t scale_min_exponent, scale_magic_shift;
    int32_t e8m0_offset, max_exponent;
    float given_scale, given_zero_point;
} Description;

INLINE int32_t bits_of(float x) { int32_t b; memcpy(&b, &x, 4); return b; }
INLINE float float_of(int32_t b) { float x; memcpy(&x, &b, 4); return x; }
INLINE float at_least(float x, float low) { return x < low ? low : x; }
INLINE float at_most(float x, float high) { return x > high ? high : x; }

INLINE float round_float(float x, int32_t min_exponent, int32_t magic_shift) {
    float magnitude = fabsf(x);
    int32_t exponent = bits_of(x) & 0x7F800000;
    exponent = exponent < min_exponent ? min_exponent : exponent;
    float magic = float_of(exponent + magic_shift);
    return copysignf((magnitude + magic) - magic, x);
}

INLINE float round_bfloat16(float x) {
    int32_t b = bits_of(x);
    return float_of((b + 0x7FFF + ((b >> 16) & 1)) & (int32_t)0xFFFF0000);
}

// Largest of the values and of the negated values, as float32 bits: integers order like the floats they stand for.
INLINE void range(const float *x, long n, int32_t *low, int32_t *high) {
    int32_t l = 0, h = 0;
    for (long i = 0; i < n; i++) {
        int32_t b = bits_of(x[i]), negated = b ^ INT32_MIN;
        h = b > h ? b : h;
        l = negated > l ? negated : l;
    }
    *low = l;
    *high = h;
}

INLINE int32_t largest_magnitude(const float *x, long n) {
    int32_t h = 0;
    for (long i = 0; i < n; i++) {
        int32_t b = bits_of(x[i]) & 0x7FFFFFFF;
        h = b > h ? b : h;
    }
    return h;
}

// The same for whole blocks of 16 that follow each other: neighbours are folded into one, four times.
INLINE int32_t largest_magnitudes_of_16(const float *x, long n, int32_t *largest) {
    int32_t work[CHUNK * 8], h = 0;
    for (long i = 0; i < n * 8; i++) {
        int32_t a = bits_of(x[2 * i]) & 0x7FFFFFFF, b = bits_of(x[2 * i + 1]) & 0x7FFFFFFF;
        work[i] = a > b ? a : b;
    }
    for (long left = n * 4; left > n; left /= 2)
#pragma GCC ivdep
        for (long i = 0; i < left; i++) work[i] = work[2 * i] > work[2 * i + 1] ? work[2 * i] : work[2 * i + 1];
    for (long i = 0; i < n; i++) {
        largest[i] = work[2 * i] > work[2 * i + 1] ? work[2 * i] : work[2 * i + 1];
        h = largest[i] > h ? largest[i] : h;
    }
    return h;
}

// Scales of n blocks with ranges [-low, high], of one candidate: its divisor holds its ratio already.
INLINE void plain_scales(const Description *d, int kind, int asymmetric, long n, float divisor, float ratio,
                         float tensor_scale, const int32_t *low, const int32_t *high, float *scale, float *zero_point) {
    const float scale_low = d->scale_low, scale_high = d->scale_high;
    const int32_t min_exponent = d->scale_min_exponent, magic_shift = d->scale_magic_shift;
    const float min_code = d->low, max_code = d->high;
#pragma GCC ivdep
    for (long i = 0; i < n; i++) {
        float span = float_of(high[i]);
        if (asymmetric) span = span + float_of(low[i]);
        float s = at_most(at_least(span / divisor / tensor_scale, scale_low), scale_high);
        if (kind == ROUNDED || kind == ROUNDED_E4M3) s = round_float(s, min_exponent, magic_shift);
        if (kind == BFLOAT16) s = round_bfloat16(s);
        if (kind != ROUNDED_E4M3) s = span == 0.0f ? 1.0f : s;
        scale[i] = s;
        if (asymmetric) {
            float zero = min_code - rintf(-float_of(low[i]) * ratio / s);
            zero_point[i] = at_most(at_least(zero, min_code), max_code);
        }
    }
}

INLINE void e8m0_scales(const Description *d, long n, float ratio, const int32_t *high, float *scale) {
    const int32_t offset = d->e8m0_offset, max_exponent = d->max_exponent;
#pragma GCC ivdep
    for (long i = 0; i < n; i++) {
        int32_t exponent = ((high[i] + offset) >> 23) - max_exponent;
        exponent = exponent < 0 ? 0 : exponent > 254 ? 254 : exponent;
        float s = float_of(exponent == 0 ? 1 << 22 : exponent << 23) * ratio;
        scale[i] = at_most(at_least(s, d->scale_low), d->scale_high);
    }
}

static void candidate_scales(const Description *d, int candidate, long n, float tensor_scale, const int32_t *low,
                             const int32_t *high, float *scale, float *zero_point) {
#define PLAIN(kind, asymmetric) \
    plain_scales(d, kind, asymmetric, n, d->divisors[candidate], d->ratios[candidate], tensor_scale, low, high, \
                 scale, zero_point)
    switch (d->scale) {
        case E8M0: e8m0_scales(d, n, d->ratios[candidate], high, scale); break;
        case EXACT: if (d->asymmetric) PLAIN(EXACT, 1); else PLAIN(EXACT, 0); break;
        case ROUNDED: if (d->asymmetric) PLAIN(ROUNDED, 1); else PLAIN(ROUNDED, 0); break;
        case BFLOAT16: if (d->asymmetric) PLAIN(BFLOAT16, 1); else PLAIN(BFLOAT16, 0); break;
        case ROUNDED_E4M3: PLAIN(ROUNDED_E4M3, 0); break;
        default:
            for (long i = 0; i < n; i++) scale[i] = d->given_scale, zero_point[i] = d->given_zero_point;
    }
}

INLINE void round_block(const Description *d, int element, const float *x, float *y, long n, float scale,
                        float tensor_scale, float zero_point) {
    const float step = at_least(scale * tensor_scale, 0x1p-149f);
    const float low = element == INT ? d->low - zero_point : -d->high;
    const float high = element == INT ? d->high - zero_point : d->high;
    const float unit = d->unit, inverse_unit = d->inverse_unit;
    const int32_t min_exponent = d->min_exponent, magic_shift = d->magic_shift;
    float edges[MAX_LEVELS];
    int32_t steps[MAX_LEVELS];  // between the bits of one level and the next
    for (int k = 1; element == LEVELS && k < MAX_LEVELS; k++) {
        edges[k] = d->edges[k - 1];
        steps[k] = bits_of(d->values[k - 1]) ^ bits_of(d->values[k]);
    }
    const int32_t lowest = bits_of(d->values[0]);
#pragma GCC ivdep
    for (long i = 0; i < n; i++) {
        float t = x[i] / step;
        if (element == INT) {
            t = rintf(at_most(at_least(t * inverse_unit, low), high)) + 0.0f;
            t = t * unit;
        } else if (element == FLOAT) {
            t = round_float(at_most(at_least(t, low), high), min_exponent, magic_shift);
        } else {
            int32_t level = lowest;
#pragma GCC unroll 16
            for (int k = 1; k < MAX_LEVELS; k++) level ^= -(t > edges[k]) & steps[k];
            t = float_of(level);
        }
        y[i] = t * scale * tensor_scale;
    }
}

// Rounds n blocks of this element; blocks of 16, NVFP4's, are worth a loop of their own.
INLINE void round_blocks(const Description *d, int element, const float *x, float *y, long n, long block, long end,
                         float tensor_scale, const float *scale, const float *zero_point) {
    for (long i = 0, at = 0; i < n; i++, at += block) {
        long length = end - at < block ? end - at : block;
        if (length == 16)
            round_block(d, element, x + at, y + at, 16, scale[i], tensor_scale, zero_point[i]);
        else
            round_block(d, element, x + at, y + at, length, scale[i], tensor_scale, zero_point[i]);
    }
}

static void round_any(const Description *d, const float *x, float *y, long n, long block, long end, float g,
                      const float *scale, const float *zero_point) {
    switch (d->element) {
        case INT: round_blocks(d, INT, x, y, n, block, end, g, scale, zero_point); break;
        case FLOAT: round_blocks(d, FLOAT, x, y, n, block, end, g, scale, zero_point); break;
        default: round_blocks(d, LEVELS, x, y, n, block, end, g, scale, zero_point);
    }
}

// Sum of squared differences, in the order of scales.py: the upper half is added to the lower, again and again.
INLINE double squared_error(const float *x, const float *y, long n, double *work) {
    for (long i = 0; i < n; i++) {
        double e = y[i] - x[i];
        work[i] = e * e;
    }
    while (n > 1) {
        long half = 1;
        while (2 * half < n) half *= 2;
        for (long i = 0; i < n - half; i++) work[i] += work[half + i];
        n = half;
    }
    return work[0];
}

// For each of n blocks the first of the candidates that errs least. y has room for all blocks, work for one.
static void search_scales(const Description *d, const float *x, float *y, double *work, long n, long block, long end,
                          float g, const int32_t *low, const int32_t *high, float *scale, float *zero_point) {
    float other_scale[CHUNK], other_zero[CHUNK] = {0};
    double least[CHUNK];
    for (int candidate = 0; candidate < d->candidates; candidate++) {
        candidate_scales(d, candidate, n, g, low, high, other_scale, other_zero);
        round_any(d, x, y, n, block, end, g, other_scale, other_zero);
        for (long i = 0; i < n; i++) {
            long at = i * block, length = end - at < block ? end - at : block;
            double error = length == 16 ? squared_error(x + at, y + at, 16, work)
                                        : squared_error(x + at, y + at, length, work);
            if (candidate == 0 || error < least[i]) {
                least[i] = error;
                scale[i] = other_scale[i];
                zero_point[i] = other_zero[i];
            }
        }
    }
}

// The range of all of x, with zero: [-ends[0], ends[1]].
int wq_range(const float *x, long n, float *ends) {
    int32_t low, high;
    range(x, n, &low, &high);
    ends[0] = float_of(low);
    ends[1] = float_of(high);
    return 0;
}

// How many blocks are worked on at a time: what stays in the first or second level cache.
long wq_chunk(long block) {
    long n = TILE / block;
    return n < 1 ? 1 : n > CHUNK ? CHUNK : n;
}

// Rows of `columns` floats, each cut into blocks of `block`. x and y may be the same. Where there are several
// candidates, work has room for the doubles of a block and the floats of a chunk. Returns 1 for NaN or Inf in x.
int wq_fake_quantize(const Description *d, const float *x, float *y, long rows, long columns, long block,
                     const float *tensor_scale, long tensor_scale_stride, double *work) {
    int32_t low[CHUNK], high[CHUNK], largest = 0;
    float scale[CHUNK], zero_point[CHUNK] = {0};
    const long chunk = wq_chunk(block) * block;
    for (long row = 0; row < rows; row++, x += columns, y += columns) {
        float g = tensor_scale ? tensor_scale[row * tensor_scale_stride] : 1.0f;
        for (long start = 0; start < columns; start += chunk) {
            const float *from = x + start;
            long end = columns - start < chunk ? columns - start : chunk;
            long n = (end + block - 1) / block;
            if (block == 16 && end == n * 16 && !d->asymmetric) {
                int32_t h = largest_magnitudes_of_16(from, n, high);
                largest = h > largest ? h : largest;
            } else for (long i = 0; i < n; i++) {
                long length = end - i * block < block ? end - i * block : block;
                if (d->asymmetric)
                    range(from + i * block, length, &low[i], &high[i]);
                else
                    high[i] = length == 16 ? largest_magnitude(from + i * block, 16)
                                           : largest_magnitude(from + i * block, length);
                largest = high[i] > largest ? high[i] : largest;
                if (d->asymmetric) largest = low[i] > largest ? low[i] : largest;
            }
            if (d->candidates > 1)
                search_scales(d, from, (float *)(work + block), work, n, block, end, g, low, high, scale, zero_point);
            else
                candidate_scales(d, 0, n, g, low, high, scale, zero_point);
            round_any(d, from, y + start, n, block, end, g, scale, zero_point);
        }
    }
    return largest > MAX_FINITE;
}
