/* The searches inside ggml's encoders, eight tries at a time.
 *
 * For each group of weights an encoder tries a dozen or more scales and keeps the best. A try is a sum
 * over the group in a fixed order, which no compiler may reorder, so ggml's loops run at the latency of
 * one addition. But tries do not depend on each other: here each lane of a vector runs one try, with the
 * same operations in the same order, so that every result has the same bits.
 *
 * Included ahead of llama.cpp's ggml-quants.c, whose own definitions are renamed to NAME_plain; compile
 * with -ffp-contract=off, as fusing a product and a sum would round once instead of twice.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

typedef float   lanes_f __attribute__((vector_size(32)));
typedef int32_t lanes_i __attribute__((vector_size(32)));

#define LANES 8
#define LARGEST_GROUP 32

static inline lanes_f all(float value) { return (lanes_f) {} + value; }
static inline lanes_f numbers(lanes_i n) { return __builtin_convertvector(n, lanes_f); }
static inline lanes_i bits(lanes_f v) { return (lanes_i) v; }
static inline lanes_f choose(lanes_i mask, lanes_f yes, lanes_f no) { return (lanes_f) ((mask & bits(yes)) | (~mask & bits(no))); }
static inline lanes_i choose_i(lanes_i mask, lanes_i yes, lanes_i no) { return (mask & yes) | (~mask & no); }
static inline lanes_f magnitude(lanes_f v) { return (lanes_f) (bits(v) & 0x7fffffff); }

/* The nearest whole number, half to even: adding 1.5 * 2^23 leaves it in the mantissa's low bits. */
static inline lanes_i rounded(lanes_f v) { return (bits(v + 12582912.f) & 0x007fffff) - 0x00400000; }

static inline lanes_i clamped(lanes_i v, int low, int high) {
    const lanes_i below = (lanes_i) {} + low, above = (lanes_i) {} + high;
    v = choose_i(v < low, below, v);
    return choose_i(v > high, above, v);
}

/* Scale and minimum of a group: x ~ scale * L + min, L in 0..nmax. A try that wins moves the minimum that the
 * following tries start from, so the lanes after a winner are run again. */
static float search_scale_and_min(int n, int nmax, const float * x, const float * weights, uint8_t * L, float * the_min,
        float rmin, float rdelta, int nstep, bool use_mad) {
    float w[LARGEST_GROUP];
    for (int i = 0; i < n; ++i) w[i] = weights ? weights[i] : x[i]*x[i];

    float min = x[0], max = x[0];
    float sum_w = w[0], sum_x = sum_w * x[0];
    for (int i = 1; i < n; ++i) {
        if (x[i] < min) min = x[i];
        if (x[i] > max) max = x[i];
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    if (min > 0) min = 0;
    if (max <= min) {
        memset(L, 0, n);
        *the_min = -min;
        return 0.f;
    }

    /* the first try, for which no better minimum is sought */
    float iscale = nmax/(max - min);
    float scale = 1/iscale;
    float best = 0;
    for (int i = 0; i < n; ++i) {
        const float shifted = iscale*(x[i] - min) + 12582912.f;
        int32_t l; memcpy(&l, &shifted, sizeof l);
        l = (l & 0x007fffff) - 0x00400000;
        L[i] = l < 0 ? 0 : l > nmax ? nmax : l;
        const float off = scale * L[i] + min - x[i];
        best += w[i] * (use_mad ? fabsf(off) : off*off);
    }

    const lanes_i count = {0, 1, 2, 3, 4, 5, 6, 7};
    for (int step = 0; step <= nstep; ) {
        const lanes_f inverse = (rmin + rdelta*numbers(count + step) + (float) nmax)/(max - min);
        lanes_f levels[LARGEST_GROUP];
        lanes_f sum_l = {}, sum_l2 = {}, sum_xl = {};
        for (int i = 0; i < n; ++i) {
            const lanes_f l = numbers(clamped(rounded(inverse*(x[i] - min)), 0, nmax));
            levels[i] = l;
            sum_l  += w[i]*l;
            sum_l2 += w[i]*l*l;
            sum_xl += w[i]*l*x[i];
        }
        const lanes_f D = sum_w*sum_l2 - sum_l*sum_l;
        lanes_f scales = (sum_w*sum_xl - sum_x*sum_l)/D;
        lanes_f mins = (sum_l2*sum_x - sum_l*sum_xl)/D;
        const lanes_i positive = mins > 0;
        mins = choose(positive, (lanes_f) {}, mins);
        scales = choose(positive, sum_xl/sum_l2, scales);
        lanes_f errors = {};
        for (int i = 0; i < n; ++i) {
            const lanes_f off = scales*levels[i] + mins - x[i];
            errors += w[i]*(use_mad ? magnitude(off) : off*off);
        }
        int lane = 0;
        for (; lane < LANES && step + lane <= nstep; ++lane) {
            if (!(D[lane] > 0 && errors[lane] < best)) continue;
            for (int i = 0; i < n; ++i) L[i] = (uint8_t) levels[i][lane];
            best = errors[lane];
            scale = scales[lane];
            const bool moved = mins[lane] != min;
            min = mins[lane];
            if (moved) { ++lane; break; }
        }
        step += lane;
    }
    *the_min = -min;
    return scale;
}

static float make_qkx2_quants(int n, int nmax, const float * x, const float * weights, uint8_t * L, float * the_min,
        uint8_t * Laux, float rmin, float rdelta, int nstep, bool use_mad) {
    (void) Laux;
    return search_scale_and_min(n, nmax, x, weights, L, the_min, rmin, rdelta, nstep, use_mad);
}

static float make_qkx3_quants(int n, int nmax, const float * x, const float * weights, uint8_t * L, float * the_min,
        uint8_t * Laux, float rmin, float rdelta, int nstep, bool use_mad) {
    (void) Laux;
    return search_scale_and_min(n, nmax, x, weights, L, the_min, rmin, rdelta, nstep, use_mad);
}

/* The scale of a group without a minimum: x ~ scale * (L - nmax). Tries are -(nmax + step/10)/max for the steps -9..9;
 * ggml runs step 0 first. */
static float make_qx_quants_plain(int n, int nmax, const float * x, int8_t * L, int rmse_type, const float * qw);

static float make_qx_quants(int n, int nmax, const float * x, int8_t * L, int rmse_type, const float * qw) {
    if (rmse_type != 1 || n > LARGEST_GROUP) return make_qx_quants_plain(n, nmax, x, L, rmse_type, qw);
    float max = 0, amax = 0;
    for (int i = 0; i < n; ++i) {
        const float size = fabsf(x[i]);
        if (size > amax) { amax = size; max = x[i]; }
    }
    if (amax < 1e-15f) {
        memset(L, 0, n);
        return 0.f;
    }
    enum { GROUPS = 3, MIDDLE = 9 };
    const lanes_i count = {0, 1, 2, 3, 4, 5, 6, 7};
    lanes_f inverse[GROUPS], sum_lx[GROUPS] = {}, sum_l2[GROUPS] = {};
    for (int g = 0; g < GROUPS; ++g) inverse[g] = -((float) nmax + 0.1f*numbers(count + (g*LANES - MIDDLE)))/max;
    for (int i = 0; i < n; ++i) {
        const float w = qw ? qw[i] : x[i]*x[i];
        const float wx = w*x[i];
        for (int g = 0; g < GROUPS; ++g) {
            const lanes_f l = numbers(clamped(rounded(inverse[g]*x[i]), -nmax, nmax - 1));
            sum_lx[g] += wx*l;
            sum_l2[g] += w*l*l;
        }
    }
    float lx = sum_lx[MIDDLE/LANES][MIDDLE%LANES], l2 = sum_l2[MIDDLE/LANES][MIDDLE%LANES];
    float chosen = -nmax/max;
    float scale = l2 ? lx/l2 : 0.0f;
    float best = scale*lx;
    for (int step = 0; step <= 2*MIDDLE; ++step) {
        if (step == MIDDLE) continue;
        lx = sum_lx[step/LANES][step%LANES];
        l2 = sum_l2[step/LANES][step%LANES];
        if (l2 > 0 && lx*lx > best*l2) {
            chosen = inverse[step/LANES][step%LANES];
            scale = lx/l2;
            best = scale*lx;
        }
    }
    for (int i = 0; i < n; ++i) {
        const float shifted = chosen*x[i] + 12582912.f;
        int32_t l; memcpy(&l, &shifted, sizeof l);
        l = (l & 0x007fffff) - 0x00400000;
        L[i] = nmax + (l < -nmax ? -nmax : l > nmax - 1 ? nmax - 1 : l);
    }
    return scale;
}

/* Sixteen levels, ascending, cut up for a binary search in four steps. */
struct levels { lanes_f first, second[2], third, fourth; float lowest; };

static inline struct levels levels_of(const int8_t * v) {
    struct levels t = { all(v[8]), { all(v[4]), all(v[12]) },
        { v[2], v[6], v[10], v[14], v[2], v[6], v[10], v[14] }, { v[1], v[3], v[5], v[7], v[9], v[11], v[13], v[15] }, v[0] };
    return t;
}

/* The level nearest to x, and its index; of two equally near ones the upper. The last level passed is the lower
 * neighbour, the last one not reached the upper. */
static inline lanes_f nearest_level(const struct levels * t, lanes_f x, lanes_i * index) {
    lanes_f low = all(t->lowest), high = all(INFINITY), at = t->first;
    lanes_i mask = x >= at, found = mask & 8;
    low = choose(mask, at, low); high = choose(mask, high, at);
    at = choose(mask, t->second[1], t->second[0]);
    mask = x >= at; found += mask & 4;
    low = choose(mask, at, low); high = choose(mask, high, at);
    at = __builtin_shuffle(t->third, found >> 2);
    mask = x >= at; found += mask & 2;
    low = choose(mask, at, low); high = choose(mask, high, at);
    at = __builtin_shuffle(t->fourth, found >> 1);
    mask = x >= at; found += mask & 1;
    low = choose(mask, at, low); high = choose(mask, high, at);
    const lanes_i lower = x - low < high - x;
    *index = found + 1 + lower;
    return choose(lower, low, high);
}

/* The types with sixteen uneven levels: IQ4_NL has a scale for each block of 32, IQ4_XS one for eight of them and
 * 6 bits for each. */
static void encode_uneven(int super_block, int block, const float * x, uint16_t * dh, uint8_t * q4, uint16_t * scales_h,
        uint8_t * scales_l, float * scales, uint8_t * L, const int8_t * values, const float * importance,
        uint16_t (*to_half)(float)) {
    const struct levels table = levels_of(values);
    const int blocks = super_block/block;
    const lanes_i count = {0, 1, 2, 3, 4, 5, 6, 7};
    enum { GROUPS = 2, TRIES = 7 };

    float sigma2 = 0;
    for (int j = 0; j < super_block; ++j) sigma2 += x[j]*x[j];
    sigma2 *= 2.f/super_block;

    float max_scale = 0, amax_scale = 0;
    for (int b = 0; b < blocks; ++b) {
        const float * xb = x + b*block;
        float max = 0, amax = 0;
        for (int j = 0; j < block; ++j) {
            const float size = fabsf(xb[j]);
            if (size > amax) { amax = size; max = xb[j]; }
        }
        if (amax < 1e-15f) {
            scales[b] = 0;
            continue;
        }
        /* 15 tries around values[0]/max, and in the last lane the one that ggml runs first */
        lanes_f inverse[GROUPS], sum_qx[GROUPS] = {}, sum_q2[GROUPS] = {};
        for (int g = 0; g < GROUPS; ++g) inverse[g] = numbers(count + (g*LANES - TRIES + values[0]))/max;
        const float guess = -max/values[0];
        inverse[GROUPS - 1][LANES - 1] = 1/guess;
        for (int j = 0; j < block; ++j) {
            const float w = importance ? importance[b*block + j]*sqrtf(sigma2 + xb[j]*xb[j]) : xb[j]*xb[j];
            for (int g = 0; g < GROUPS; ++g) {
                lanes_i index;
                const lanes_f q = nearest_level(&table, inverse[g]*xb[j], &index);
                sum_qx[g] += w*q*xb[j];
                sum_q2[g] += w*q*q;
            }
        }
        float qx = sum_qx[GROUPS - 1][LANES - 1], q2 = sum_q2[GROUPS - 1][LANES - 1];
        float d = q2 > 0 ? qx/q2 : 0.f;
        float best = d*qx;
        for (int t = 0; t <= 2*TRIES; ++t) {
            qx = sum_qx[t/LANES][t%LANES];
            q2 = sum_q2[t/LANES][t%LANES];
            if (q2 > 0 && qx*qx > best*q2) { d = qx/q2; best = d*qx; }
        }
        scales[b] = d;
        if (fabsf(d) > amax_scale) { amax_scale = fabsf(d); max_scale = d; }
    }

    float inverses[8];
    if (blocks > 1) {
        memset(scales_h, 0, ((blocks + 7)/8)*sizeof(uint16_t));
        memset(scales_l, 0, blocks/2);
        const float d = -max_scale/32;
        const float id = d ? 1/d : 0.f;
        dh[0] = to_half(d);
        for (int b = 0; b < blocks; ++b) {
            const float shifted = id*scales[b] + 12582912.f;
            int32_t l; memcpy(&l, &shifted, sizeof l);
            l = (l & 0x007fffff) - 0x00400000;
            l = l < -32 ? -32 : l > 31 ? 31 : l;
            const float dl = d*l;
            inverses[b] = dl ? 1/dl : 0.f;
            l += 32;
            scales_l[b/2] |= (l & 0xf) << 4*(b%2);
            scales_h[b/8] |= (l >> 4) << 2*(b%8);
        }
    } else {
        dh[0] = to_half(scales[0]);
        inverses[0] = scales[0] ? 1/scales[0] : 0;
    }
    for (int j = 0; j < super_block; j += LANES) {
        lanes_f at;
        lanes_i index;
        memcpy(&at, x + j, sizeof at);
        nearest_level(&table, inverses[j/block]*at, &index);
        for (int k = 0; k < LANES; ++k) L[j + k] = (uint8_t) index[k];
    }
    for (int i = 0; i < super_block/32; ++i) {
        for (int j = 0; j < 16; ++j) q4[16*i + j] = L[32*i + j] | (L[32*i + 16 + j] << 4);
    }
}

static uint16_t half_of(float value);

static void quantize_row_iq4_nl_impl(int super_block, int block, const float * x, uint16_t * dh, uint8_t * q4,
        uint16_t * scales_h, uint8_t * scales_l, float * scales, float * weight, uint8_t * L, const int8_t * values,
        const float * importance, int ntry) {
    (void) weight, (void) ntry; /* always 7 where an encoder calls it; the reference row functions are not used */
    encode_uneven(super_block, block, x, dh, q4, scales_h, scales_l, scales, L, values, importance, half_of);
}
