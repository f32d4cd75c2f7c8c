/* The loops of rounding by the whole Hessian that go column by column: rounding.py and refinement.py define what they do.
 *
 * Output features never meet, so they lie side by side in vectors, FEATURES of them at a time. Within NEAR columns each move is told
 * to the next ones at once, to all later ones in a product of small matrices whose target stays in registers.
 * Matrices are float32, [columns, out], `out` apart. Sums may be fused and are added in another order than torch's.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

typedef float lanes __attribute__((vector_size(32)));
typedef int32_t lanes_i __attribute__((vector_size(32)));

#define LANES 8
#define FEATURES 16 /* two vectors: with six rows of a product they fill the sixteen registers there are */
#define HALVES (FEATURES/LANES)
#define NEAR 16
#define SPAN 256 /* columns that one call takes at most */
#define GROUPS 16 /* of a block at most */

typedef struct { lanes at[HALVES]; } row;

struct layout {
    int32_t block, group; /* columns */
    float least, most; /* of steps */
    float least_scale, most_scale, most_minimum;
};

/* Each [what there are of it, out]. d, dmin: of blocks; scale, minimum: of groups; steps: of columns. */
struct blocks { float *d, *dmin, *scale, *minimum, *steps; };

static inline lanes all(float value) { return (lanes) { value, value, value, value, value, value, value, value }; }
#ifdef __AVX__
static inline lanes choose(lanes_i mask, lanes yes, lanes no) { return (lanes) _mm256_blendv_ps((__m256) no, (__m256) yes, (__m256) mask); }
static inline lanes least_of(lanes a, lanes b) { return (lanes) _mm256_min_ps((__m256) a, (__m256) b); }
static inline lanes most_of(lanes a, lanes b) { return (lanes) _mm256_max_ps((__m256) a, (__m256) b); }
static inline lanes even(lanes value) { return (lanes) _mm256_round_ps((__m256) value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline lanes stored(lanes value) { /* through float16 */
    return (lanes) _mm256_cvtph_ps(_mm256_cvtps_ph((__m256) value, _MM_FROUND_TO_NEAREST_INT));
}
#else
static inline lanes choose(lanes_i mask, lanes yes, lanes no) { return (lanes) ((mask & (lanes_i) yes) | (~mask & (lanes_i) no)); }
static inline lanes least_of(lanes a, lanes b) { return choose(a < b, a, b); }
static inline lanes most_of(lanes a, lanes b) { return choose(a > b, a, b); }
static inline lanes even(lanes value) { /* adding 1.5 * 2^23 leaves no room for a fraction; of at most 2^22 */
    return (least_of(most_of(value, all(-4194304)), all(4194304)) + 12582912.f) - 12582912.f;
}
static inline lanes stored(lanes value) { /* through float16 */
    for (int i = 0; i < LANES; ++i) value[i] = (float) (_Float16) value[i];
    return value;
}
#endif

/* The nearest whole number, half to even, within bounds. */
static inline lanes whole(lanes value, float low, float high) { return least_of(most_of(even(value), all(low)), all(high)); }

/* count: of features that there are; the others read as 0. */
static inline row loaded(const float *from, int count) {
    row found;
    if (count == FEATURES) {
        memcpy(&found, from, sizeof found);
        return found;
    }
    memset(&found, 0, sizeof found);
    memcpy(&found, from, count*sizeof(float));
    return found;
}

static inline void put(float *to, row value, int count) { memcpy(to, &value, count*sizeof(float)); }

/* Of `rows` rows of a product of small matrices, in registers: sum over k of factor[r*by_row + k*by_k] * moves[k]. */
#define PRODUCT(ROWS) \
static inline void product_##ROWS(lanes sum[ROWS][HALVES], const float *restrict factor, int64_t by_row, int64_t by_k, \
        const row *restrict moves, int count) { \
    for (int r = 0; r < ROWS; ++r) for (int h = 0; h < HALVES; ++h) sum[r][h] = all(0); \
    for (int k = 0; k < count; ++k) { \
        const row move = moves[k]; \
        for (int r = 0; r < ROWS; ++r) { \
            const lanes share = all(factor[r*by_row + k*by_k]); \
            for (int h = 0; h < HALVES; ++h) sum[r][h] += share*move.at[h]; \
        } \
    } \
}
PRODUCT(6)
PRODUCT(1)

/* `body` for each row `r` of `rows` and each half `h`, with `product` of that row. */
#define WITH_PRODUCT(rows, factor, by_row, by_k, moves, count, body) do { \
    int r_ = 0; \
    for (; r_ + 6 <= (rows); r_ += 6) { \
        lanes sum_[6][HALVES]; \
        product_6(sum_, (factor) + r_*(by_row), by_row, by_k, moves, count); \
        for (int i_ = 0; i_ < 6; ++i_) for (int h = 0; h < HALVES; ++h) { const int r = r_ + i_; const lanes product = sum_[i_][h]; body; } \
    } \
    for (; r_ < (rows); ++r_) { \
        lanes sum_[1][HALVES]; \
        product_1(sum_, (factor) + r_*(by_row), by_row, by_k, moves, count); \
        for (int h = 0; h < HALVES; ++h) { const int r = r_; const lanes product = sum_[0][h]; body; } \
    } \
} while (0)

/* --- rounding ------------------------------------------------------------------------------------------------------- */

/* Columns one after another, in the order of `order`; see round_span in rounding.py.
 *
 * rest: of these columns, with the errors of earlier ones passed on. factor: [columns, columns] of the upper triangular factor.
 * of: all columns, whose steps change. errors: [columns, out], comes out. lost: [out], grows by the squares of the errors. */
void round_span(int32_t columns, int64_t out, int64_t first, int64_t last, const int64_t *order, const float *rest,
        const float *factor, const struct layout *layout, const struct blocks *of, float *errors, float *lost) {
    struct { float flatness; int64_t column, block, group; } of_column[SPAN];
    for (int c = 0; c < columns; ++c) {
        of_column[c].flatness = 1/factor[c*columns + c];
        of_column[c].column = order[c]*out;
        of_column[c].block = order[c]/layout->block*out;
        of_column[c].group = order[c]/layout->group*out;
    }
    for (int64_t feature = first; feature < last; feature += FEATURES) {
        const int count = last - feature < FEATURES ? (int) (last - feature) : FEATURES;
        row left[SPAN], error[SPAN], sum = loaded(lost + feature, count);
        for (int c = 0; c < columns; ++c) left[c] = loaded(rest + c*out + feature, count);
        for (int start = 0; start < columns; start += NEAR) {
            const int stop = start + NEAR < columns ? start + NEAR : columns;
            for (int c = start; c < stop; ++c) {
                const int64_t block = of_column[c].block + feature, group = of_column[c].group + feature;
                const row d = loaded(of->d + block, count), dmin = loaded(of->dmin + block, count);
                const row k = loaded(of->scale + group, count), m = loaded(of->minimum + group, count);
                row step;
                for (int h = 0; h < HALVES; ++h) {
                    const lanes scale = d.at[h]*k.at[h], value = left[c].at[h] + dmin.at[h]*m.at[h];
                    step.at[h] = whole(value*(1/choose(scale == 0, all(1), scale)), layout->least, layout->most);
                    error[c].at[h] = (value - scale*step.at[h])*of_column[c].flatness;
                    sum.at[h] += error[c].at[h]*error[c].at[h];
                }
                put(of->steps + of_column[c].column + feature, step, count);
                put(errors + c*out + feature, error[c], count);
                for (int other = c + 1; other < stop; ++other) {
                    const lanes share = all(factor[c*columns + other]);
                    for (int h = 0; h < HALVES; ++h) left[other].at[h] -= share*error[c].at[h];
                }
            }
            WITH_PRODUCT(columns - stop, factor + start*columns + stop, 1, columns, error + start, stop - start,
                left[stop + r].at[h] -= product);
        }
        put(lost + feature, sum, count);
    }
}

/* --- refining ------------------------------------------------------------------------------------------------------- */

struct gain { lanes p, r, A, B, C; }; /* as _Gain in refinement.py */

static inline lanes gained(const struct gain *of, lanes a, lanes b) {
    return 2*(a*of->p - b*of->r) - (a*a*of->A - 2*a*b*of->B + b*b*of->C);
}

static inline lanes best_a(const struct gain *of) {
    const lanes both = of->A*of->C - of->B*of->B;
    const lanes paired = (of->C*of->p - of->B*of->r)/both;
    const lanes alone = choose(of->A > 0, of->p/of->A, all(0));
    return choose(both > 1e-6f*of->A*of->C, paired, alone);
}

static inline lanes best_b(const struct gain *of, lanes a) { return choose(of->C > 0, (a*of->B - of->r)/of->C, all(0)); }

/* One block of a span: groups' scales and minimums, d and dmin, steps. left: of the span, is kept true to all moves for the
 * columns from the block's first on. hessian: the span's. ones: [columns of the span, its groups], sums of the Hessian over a group. */
static void refine_block(int columns, int first, const float *hessian, const float *ones, int groups,
        const struct layout *layout, row *left, row *d, row *dmin, row *scale, row *minimum, row *steps, row *won) {
    const int size = layout->group, many = layout->block/size, last = first + layout->block, rows = columns - first;
    const bool offset = layout->most_minimum > 0;
    row on_u[SPAN];
    for (int g = 0; g < many; ++g) {
        const int begin = first + g*size;
        const float *own = ones + begin/size; /* of the group, `groups` apart */
        row to_a = {}, to_b = {}; /* what a step of the scale and of the minimum has moved */
        if (layout->most_scale != layout->least_scale) {
            float C = 0;
            for (int c = begin; c < begin + size; ++c) C += own[c*groups];
            row p = {}, q = {}, A = {}, B = {};
            WITH_PRODUCT(size, hessian + begin*columns + begin, columns, 1, steps + begin, size, {
                const lanes step = steps[begin + r].at[h]; const lanes rest = left[begin + r].at[h];
                p.at[h] += step*rest; q.at[h] += rest; A.at[h] += step*product; B.at[h] += product;
            });
            for (int h = 0; h < HALVES; ++h) {
                const lanes D = d->at[h], M = dmin->at[h], s = scale[g].at[h], m = minimum[g].at[h];
                const struct gain of = { D*p.at[h], M*q.at[h], D*D*A.at[h], D*M*B.at[h], M*M*C };
                const lanes centre = even(s + best_a(&of));
                lanes most = {}, a = {}, b = {};
                for (int shift = -1; shift <= 1; ++shift) {
                    const lanes tried_a = whole(centre + (float) shift, layout->least_scale, layout->most_scale) - s;
                    const lanes tried_b = whole(m + best_b(&of, tried_a), 0, layout->most_minimum) - m;
                    const lanes gain = gained(&of, tried_a, tried_b);
                    const lanes_i better = gain > most;
                    most = choose(better, gain, most);
                    a = choose(better, tried_a, a);
                    b = choose(better, tried_b, b);
                }
                scale[g].at[h] += a;
                minimum[g].at[h] += b;
                won->at[h] += most;
                to_a.at[h] = a*D;
                to_b.at[h] = b*M;
            }
        }
        const float *shares = hessian + first*columns + begin;
        row *rest = left + first;
        own += first*groups;
        if (g == 0) {
            WITH_PRODUCT(rows, shares, columns, 1, steps + begin, size, {
                rest[r].at[h] -= product*to_a.at[h] - own[r*groups]*to_b.at[h];
                on_u[r].at[h] = product*scale[g].at[h];
            });
        } else {
            WITH_PRODUCT(rows, shares, columns, 1, steps + begin, size, {
                rest[r].at[h] -= product*to_a.at[h] - own[r*groups]*to_b.at[h];
                on_u[r].at[h] += product*scale[g].at[h];
            });
        }
    }

    row a, b; /* of d and dmin */
    const float *sums = ones + first*groups + first/size;
    for (int h = 0; h < HALVES; ++h) {
        struct gain of = {};
        for (int g = 0; g < many; ++g) {
            lanes p = {}, r = {}, A = {}, B = {}, v = {};
            for (int c = g*size; c < (g + 1)*size; ++c) {
                const lanes step = steps[first + c].at[h], rest = left[first + c].at[h], on = on_u[c].at[h];
                p += step*rest;
                r += rest;
                A += step*on;
                B += on;
                if (offset) for (int other = 0; other < many; ++other) v += sums[c*groups + other]*minimum[other].at[h];
            }
            of.p += scale[g].at[h]*p;
            of.r += minimum[g].at[h]*r;
            of.A += scale[g].at[h]*A;
            of.B += minimum[g].at[h]*B;
            of.C += minimum[g].at[h]*v;
        }
        a.at[h] = stored(d->at[h] + best_a(&of)) - d->at[h];
        b.at[h] = stored(dmin->at[h] + best_b(&of, a.at[h])) - dmin->at[h];
        const lanes gain = gained(&of, a.at[h], b.at[h]);
        const lanes_i better = gain > 0; /* false for what float16 cannot hold */
        a.at[h] = choose(better, a.at[h], all(0));
        b.at[h] = choose(better, b.at[h], all(0));
        won->at[h] += choose(better, gain, all(0));
        d->at[h] += a.at[h];
        dmin->at[h] += b.at[h];
    }
    row *rest = left + first;
    if (offset) {
        WITH_PRODUCT(rows, sums, groups, 1, minimum, many, rest[r].at[h] -= on_u[r].at[h]*a.at[h] - product*b.at[h]);
    } else {
        for (int r = 0; r < rows; ++r) for (int h = 0; h < HALVES; ++h) rest[r].at[h] -= on_u[r].at[h]*a.at[h];
    }

    row moves[NEAR];
    for (int start = first; start < last; start += NEAR) { /* steps */
        const int stop = start + NEAR < last ? start + NEAR : last;
        for (int c = start; c < stop; ++c) {
            const int g = (c - first)/size;
            const float steepness = hessian[c*columns + c];
            row *move = moves + c - start;
            for (int h = 0; h < HALVES; ++h) {
                const lanes of_step = d->at[h]*scale[g].at[h], now = steps[c].at[h];
                const lanes per_step = 1/(choose(of_step == 0, all(1), of_step)*steepness);
                const lanes best = whole(now + left[c].at[h]*per_step, layout->least, layout->most);
                move->at[h] = (best - now)*of_step;
                won->at[h] += move->at[h]*(2*left[c].at[h] - steepness*move->at[h]);
                steps[c].at[h] = best;
            }
            for (int other = c + 1; other < stop; ++other) {
                const lanes share = all(hessian[c*columns + other]);
                for (int h = 0; h < HALVES; ++h) left[other].at[h] -= share*move->at[h];
            }
        }
        WITH_PRODUCT(columns - stop, hessian + stop*columns + start, columns, 1, moves, stop - start, left[stop + r].at[h] -= product);
    }
}

/* One sweep over the blocks of a span; see refine_span in refinement.py.
 *
 * hessian: [columns, columns]. pull, wanted: [columns, out]. of: the span's own blocks, change.
 * lost: [columns, out], becomes what is wanted less what the blocks come to. won: [out], grows by what the loss fell. */
void refine_span(int32_t columns, int64_t out, int64_t first, int64_t last, const float *hessian, const float *pull, const float *wanted,
        const struct layout *layout, const struct blocks *of, float *lost, float *won) {
    const int blocks = columns/layout->block, groups = columns/layout->group, many = layout->block/layout->group;
    float ones[SPAN*GROUPS];
    for (int c = 0; c < columns; ++c) {
        for (int g = 0; g < groups; ++g) {
            float sum = 0;
            for (int other = g*layout->group; other < (g + 1)*layout->group; ++other) sum += hessian[c*columns + other];
            ones[c*groups + g] = sum;
        }
    }
    for (int64_t feature = first; feature < last; feature += FEATURES) {
        const int count = last - feature < FEATURES ? (int) (last - feature) : FEATURES;
        row left[SPAN], steps[SPAN], scale[GROUPS], minimum[GROUPS], gain = loaded(won + feature, count);
        for (int c = 0; c < columns; ++c) {
            left[c] = loaded(pull + c*out + feature, count);
            steps[c] = loaded(of->steps + c*out + feature, count);
        }
        for (int g = 0; g < groups; ++g) {
            scale[g] = loaded(of->scale + g*out + feature, count);
            minimum[g] = loaded(of->minimum + g*out + feature, count);
        }
        for (int b = 0; b < blocks; ++b) {
            row d = loaded(of->d + b*out + feature, count), dmin = loaded(of->dmin + b*out + feature, count);
            refine_block(columns, b*layout->block, hessian, ones, groups, layout, left, &d, &dmin,
                scale + b*many, minimum + b*many, steps, &gain);
            put(of->d + b*out + feature, d, count);
            put(of->dmin + b*out + feature, dmin, count);
            for (int c = b*layout->block; c < (b + 1)*layout->block; ++c) {
                const int g = c/layout->group;
                const row want = loaded(wanted + c*out + feature, count);
                row rest;
                for (int h = 0; h < HALVES; ++h) {
                    rest.at[h] = want.at[h] - (d.at[h]*scale[g].at[h]*steps[c].at[h] - dmin.at[h]*minimum[g].at[h]);
                }
                put(lost + c*out + feature, rest, count);
                put(of->steps + c*out + feature, steps[c], count);
            }
        }
        for (int g = 0; g < groups; ++g) {
            put(of->scale + g*out + feature, scale[g], count);
            put(of->minimum + g*out + feature, minimum[g], count);
        }
        put(won + feature, gain, count);
    }
}

/* lost: [columns, out], becomes what is wanted less what the blocks come to. */
void left_over(int32_t columns, int64_t out, int64_t first, int64_t last, const float *wanted, const struct layout *layout,
        const struct blocks *of, float *lost) {
    for (int c = 0; c < columns; ++c) {
        const int64_t block = c/layout->block*out, group = c/layout->group*out, at = c*out;
        const float *restrict d = of->d + block, *restrict dmin = of->dmin + block;
        const float *restrict scale = of->scale + group, *restrict minimum = of->minimum + group;
        const float *restrict steps = of->steps + at, *restrict want = wanted + at;
        float *restrict rest = lost + at;
        for (int64_t i = first; i < last; ++i) rest[i] = want[i] - (d[i]*scale[i]*steps[i] - dmin[i]*minimum[i]);
    }
}
