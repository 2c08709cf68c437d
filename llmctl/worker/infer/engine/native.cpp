// A decoder stage on the CPU: whole layers in one call, for bf16 or fp32 weights.
//
// Compiled on the host by native.py, for that host's processor. Three ideas:
//  - Matrices are packed once: blocks of 16 outputs, and within a block input by input, so that a matrix is read
//    as one stream, and one vector instruction serves 16 outputs (vdpbf16ps: two inputs of each at once).
//  - Every output is summed in the same order whatever the number of rows: a row's result does not depend on the
//    batch around it, bit for bit.
//  - All threads go through all layers together, with a barrier between phases: no call, no allocation and no
//    dispatch per layer.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>
#include <omp.h>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

typedef float vec __attribute__((vector_size(64)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef uint16_t bf16;
constexpr int LANES = 16;

static inline vec all(float value) { return vec{} + value; }
static inline vec load(const float* from) { vec out; memcpy(&out, from, 64); return out; }
static inline void store(float* to, vec value) { memcpy(to, &value, 64); }
static inline float as_float(bf16 value) { uint32_t bits = uint32_t(value) << 16; float out; memcpy(&out, &bits, 4); return out; }
static inline float as_float(float value) { return value; }
static inline void put(bf16* to, float value) {  // round to nearest, ties to even
    uint32_t bits; memcpy(&bits, &value, 4);
    *to = bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static inline void put(float* to, float value) { *to = value; }
static inline vec load_wide(const float* from) { return load(from); }
static inline vec load_wide(const bf16* from) {
    typedef uint16_t half __attribute__((vector_size(32)));
    half raw; memcpy(&raw, from, 32);
    ivec bits = __builtin_convertvector(raw, ivec) << 16;
    vec out; memcpy(&out, &bits, 64); return out;
}

static inline vec exponential(vec x) {  // Cephes' expf, 16 at a time; relative error about 1e-7
    x = x < -87.0f ? all(-87.0f) : x;
    x = x > 88.0f ? all(88.0f) : x;
    vec scaled = x * 1.44269504088896341f;
    ivec whole = __builtin_convertvector(scaled + (scaled < 0.0f ? all(-0.5f) : all(0.5f)), ivec);
    vec n = __builtin_convertvector(whole, vec);
    vec r = x - n * 0.693359375f - n * -2.12194440e-4f;
    vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f; p = p * r + 8.3334519073e-3f; p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f; p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    ivec power = (whole + 127) << 23;
    vec factor; memcpy(&factor, &power, 64);
    return p * factor;
}

// What a vector instruction takes of the inputs at once: two bf16, or one float.
template <class W> struct Unit;
template <> struct Unit<bf16> {
    static constexpr int SIZE = 2;
#if defined(__AVX512BF16__)
    static inline vec madd(vec sum, const bf16* x, const bf16* w) {
        int32_t pair; memcpy(&pair, x, 4);
        return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(w), (__m512bh)_mm512_set1_epi32(pair));
    }
#else
    static inline vec madd(vec sum, const bf16* x, const bf16* w) {
        ivec pairs; memcpy(&pairs, w, 64);
        ivec low = pairs << 16, high = pairs & (int32_t)0xffff0000;
        vec first, second; memcpy(&first, &low, 64); memcpy(&second, &high, 64);
        return sum + first * as_float(x[0]) + second * as_float(x[1]);
    }
#endif
};
template <> struct Unit<float> {
    static constexpr int SIZE = 1;
    static inline vec madd(vec sum, const float* x, const float* w) { return sum + load(w) * x[0]; }
};

static void* room(size_t bytes) {
    void* found = nullptr;
    if (posix_memalign(&found, 64, bytes + 64)) abort();
    return found;
}

template <class W> struct Matrix {  // n outputs of k inputs; see the head of this file
    W* data = nullptr;
    int64_t blocks = 0, units = 0;
    ~Matrix() { free(data); }
    int64_t block_size() const { return units * LANES * Unit<W>::SIZE; }
    const W* block(int64_t index) const { return data + index * block_size(); }
    int64_t place(int64_t n, int64_t k) const {
        constexpr int S = Unit<W>::SIZE;
        return ((n / LANES * units + k / S) * LANES + n % LANES) * S + k % S;
    }
    // Row `first + i` of the packed matrix is row i of `from`; `stride` > 1 leaves blocks in between.
    void allocate(int64_t n, int64_t k) {
        blocks = (n + LANES - 1) / LANES;
        units = (k + Unit<W>::SIZE - 1) / Unit<W>::SIZE;
        free(data);
        data = (W*)room(blocks * block_size() * sizeof(W));
        memset((void*)data, 0, blocks * block_size() * sizeof(W));
    }
    void fill(const W* from, int64_t n, int64_t k, int64_t every, int64_t offset) {
#pragma omp parallel for if (n * k > 1 << 20)
        for (int64_t b = 0; b < (n + LANES - 1) / LANES; b++)
            for (int64_t row = b * LANES; row < n && row < (b + 1) * LANES; row++)
                for (int64_t column = 0; column < k; column++)
                    data[place((b * every + offset) * LANES + row % LANES, column)] = from[row * k + column];
    }
};

// M rows times NB blocks; `done(row, block, sums)` takes what comes out.
template <int M, int NB, class W, class Done>
static inline void tile(const Matrix<W>& w, const W* x, int64_t stride, int64_t row, int64_t block, Done done) {
    constexpr int S = Unit<W>::SIZE;
    vec sums[M][NB] = {};
    const W* from[NB];
    for (int b = 0; b < NB; b++) from[b] = w.block(block + b);
    const W* in = x + row * stride;
    for (int64_t unit = 0; unit < w.units; unit++)
#pragma GCC unroll 8
        for (int b = 0; b < NB; b++)
#pragma GCC unroll 8
            for (int m = 0; m < M; m++)
                sums[m][b] = Unit<W>::madd(sums[m][b], in + m * stride + unit * S, from[b] + unit * LANES * S);
    for (int m = 0; m < M; m++)
        for (int b = 0; b < NB; b++) done(row + m, block + b, sums[m][b]);
}

template <int M, class W, class Done>
static inline void tiles(const Matrix<W>& w, const W* x, int64_t stride, int64_t row, int64_t first, int64_t stop, Done done) {
    constexpr int WIDE = M <= 4 ? 4 : 2;
    int64_t block = first;
    for (; block + WIDE <= stop; block += WIDE) tile<M, WIDE>(w, x, stride, row, block, done);
    for (; block < stop; block++) tile<M, 1>(w, x, stride, row, block, done);
}

// Blocks first..stop for all rows: a few blocks stay in the cache while all rows pass.
template <class W, class Done>
static void product(const Matrix<W>& w, const W* x, int64_t stride, int64_t rows, int64_t first, int64_t stop, Done done) {
    for (int64_t from = first; from < stop; from += 4) {
        int64_t to = from + 4 < stop ? from + 4 : stop;
        int64_t row = 0;
        for (; row + 8 <= rows; row += 8) tiles<8>(w, x, stride, row, from, to, done);
        switch (rows - row) {
            case 7: tiles<7>(w, x, stride, row, from, to, done); break;
            case 6: tiles<6>(w, x, stride, row, from, to, done); break;
            case 5: tiles<5>(w, x, stride, row, from, to, done); break;
            case 4: tiles<4>(w, x, stride, row, from, to, done); break;
            case 3: tiles<3>(w, x, stride, row, from, to, done); break;
            case 2: tiles<2>(w, x, stride, row, from, to, done); break;
            case 1: tiles<1>(w, x, stride, row, from, to, done); break;
        }
    }
}

struct Sizes {
    int64_t layers, dim, heads, kv_heads, head_dim, ffn, slots, length, window, max_rows, threads;
    double eps;
};

template <class W> struct Layer {
    Matrix<W> qkv, out, gate_up, down;
    std::vector<float> attention_norm, ffn_norm, qkv_bias, out_bias, q_norm, k_norm;
};

// Rows of a step: token, slot, position.
static inline int64_t token_of(const int64_t* rows, int64_t r) { return rows[r * 3]; }
static inline int64_t slot_of(const int64_t* rows, int64_t r) { return rows[r * 3 + 1]; }
static inline int64_t position_of(const int64_t* rows, int64_t r) { return rows[r * 3 + 2]; }

struct Share { int64_t first, stop; };
static inline Share share(int64_t total, int64_t multiple) {  // of this thread
    int64_t parts = omp_get_num_threads(), me = omp_get_thread_num();
    int64_t pieces = (total + multiple - 1) / multiple;
    int64_t first = pieces * me / parts * multiple, stop = pieces * (me + 1) / parts * multiple;
    return {first < total ? first : total, stop < total ? stop : total};
}

struct Any {  // what C sees
    virtual ~Any() {}
    virtual void matrix(int64_t layer, int64_t which, const void* from, int64_t n, int64_t k) = 0;
    virtual void vector(int64_t layer, int64_t which, const float* from, int64_t n) = 0;
    virtual void embed(const int64_t* rows, int64_t count, int64_t first, float* x) = 0;
    virtual void layers(const int64_t* rows, int64_t count, float* x, int64_t first, int64_t stop, int64_t parts, float* y) = 0;
    virtual void logits(const float* hidden, int64_t count, float* out) = 0;
};

template <class W> struct Model : Any {
    static constexpr int S = Unit<W>::SIZE;
    Sizes is;
    std::vector<Layer<W>> layer;
    Matrix<W> embedding, head;
    bool tied = false;
    const float *cosine, *sine;  // [length, head_dim / 2]
    int64_t fused, q_dim, ffn_wide;
    W *keys, *values, *normed, *q, *mixed, *inner;
    float *together, *scores;

    Model(const Sizes& sizes, const float* cosines, const float* sines) : is(sizes), layer(sizes.layers), cosine(cosines), sine(sines) {
        q_dim = is.heads * is.head_dim;
        fused = (is.heads + 2 * is.kv_heads) * is.head_dim;
        ffn_wide = (is.ffn + LANES - 1) / LANES * LANES;
        int64_t blocks = (is.length + LANES - 1) / LANES;
        size_t cache = size_t(is.layers) * is.slots * is.kv_heads * blocks * LANES * is.head_dim;
        keys = (W*)room(cache * sizeof(W));
        values = (W*)room(cache * sizeof(W));
        normed = (W*)room(is.max_rows * is.dim * sizeof(W));
        q = (W*)room(is.max_rows * q_dim * sizeof(W));
        mixed = (W*)room(is.max_rows * q_dim * sizeof(W));
        inner = (W*)room(is.max_rows * ffn_wide * sizeof(W));
        together = (float*)room(is.max_rows * fused * sizeof(float));
        scores = (float*)room(is.threads * (is.heads / is.kv_heads) * blocks * LANES * sizeof(float));
    }
    ~Model() {
        for (void* one : {(void*)keys, (void*)values, (void*)normed, (void*)q, (void*)mixed, (void*)inner, (void*)together, (void*)scores}) free(one);
    }

    void matrix(int64_t index, int64_t which, const void* given, int64_t n, int64_t k) override {
        const W* from = (const W*)given;
        Matrix<W>* all[] = {&embedding, &head};
        if (index >= 0) {
            Layer<W>& one = layer[index];
            if (which == 2) {  // gate and up take turns, block by block, so that one thread has both
                one.gate_up.allocate(2 * ffn_wide, k);
                one.gate_up.fill(from, n / 2, k, 2, 0);
                one.gate_up.fill(from + n / 2 * k, n / 2, k, 2, 1);
                return;
            }
            Matrix<W>* own[] = {&one.qkv, &one.out, nullptr, &one.down};
            own[which]->allocate(n, which == 3 ? ffn_wide : k);
            own[which]->fill(from, n, k, 1, 0);
            return;
        }
        if (!from) { tied = true; return; }
        all[which]->allocate(n, k);
        all[which]->fill(from, n, k, 1, 0);
    }
    void vector(int64_t index, int64_t which, const float* from, int64_t n) override {
        Layer<W>& one = layer[index];
        std::vector<float>* all[] = {&one.attention_norm, &one.ffn_norm, &one.qkv_bias, &one.out_bias, &one.q_norm, &one.k_norm};
        all[which]->assign(from, from + n);
    }

    void embed(const int64_t* rows, int64_t count, int64_t first, float* x) override {
        int64_t held = embedding.blocks * LANES;
        for (int64_t r = 0; r < count; r++) {
            int64_t own = token_of(rows, r) - first;
            for (int64_t d = 0; d < is.dim; d++)
                x[r * is.dim + d] = own >= 0 && own < held ? as_float(embedding.data[embedding.place(own, d)]) : 0.0f;
        }
    }

    void norm_rows(const float* x, int64_t count, const float* weight) {
        Share mine = share(count, 1);
        for (int64_t r = mine.first; r < mine.stop; r++) {
            const float* from = x + r * is.dim;
            vec sum = {};
            for (int64_t d = 0; d < is.dim; d += LANES) { vec part = load(from + d); sum += part * part; }
            float total = 0;
            for (int lane = 0; lane < LANES; lane++) total += sum[lane];
            float scale = 1.0f / std::sqrt(total / is.dim + (float)is.eps);
            for (int64_t d = 0; d < is.dim; d++) put(normed + r * is.dim + d, from[d] * scale * weight[d]);
        }
    }

    void norm_head(float* x, const std::vector<float>& weight) {
        if (weight.empty()) return;
        float total = 0;
        for (int64_t d = 0; d < is.head_dim; d++) total += x[d] * x[d];
        float scale = 1.0f / std::sqrt(total / is.head_dim + (float)is.eps);
        for (int64_t d = 0; d < is.head_dim; d++) x[d] *= scale * weight[d];
    }
    void turn(float* x, int64_t position) {  // pairs (i, i + head_dim / 2)
        int64_t half = is.head_dim / 2;
        const float *c = cosine + position * half, *s = sine + position * half;
        for (int64_t i = 0; i < half; i++) {
            float a = x[i], b = x[i + half];
            x[i] = a * c[i] - b * s[i];
            x[i + half] = b * c[i] + a * s[i];
        }
    }

    int64_t cache_at(int64_t index, int64_t slot, int64_t kv) {
        int64_t positions = (is.length + LANES - 1) / LANES * LANES;
        return ((index * is.slots + slot) * is.kv_heads + kv) * positions * is.head_dim;
    }

    // Rotate what the fused product gave; queries go on, keys and values into the cache. Keys lie like a packed
    // matrix of 16 positions per block, values position by position.
    void spread(int64_t index, const int64_t* rows, int64_t count) {
        Layer<W>& one = layer[index];
        int64_t per_row = is.heads + 2 * is.kv_heads, hd = is.head_dim;
        Share mine = share(count * per_row, 1);
        for (int64_t item = mine.first; item < mine.stop; item++) {
            int64_t r = item / per_row, h = item % per_row, slot = slot_of(rows, r), at = position_of(rows, r);
            float* x = together + r * fused + h * hd;
            if (h < is.heads) {
                norm_head(x, one.q_norm);
                turn(x, at);
                for (int64_t d = 0; d < hd; d++) put(q + r * q_dim + h * hd + d, x[d]);
            } else if (h < is.heads + is.kv_heads) {
                norm_head(x, one.k_norm);
                turn(x, at);
                W* to = keys + cache_at(index, slot, h - is.heads) + at / LANES * LANES * hd;
                for (int64_t d = 0; d < hd; d++) put(to + (d / S * LANES + at % LANES) * S + d % S, x[d]);
            } else {
                W* to = values + cache_at(index, slot, h - is.heads - is.kv_heads) + at * hd;
                for (int64_t d = 0; d < hd; d++) put(to + d, x[d]);
            }
        }
    }

    // G query heads that share one key-value head, one row.
    template <int G> void attend(int64_t index, const int64_t* rows, int64_t r, int64_t kv, int64_t h) {
        int64_t hd = is.head_dim, at = position_of(rows, r), base = cache_at(index, slot_of(rows, r), kv);
        int64_t first = is.window > 0 && at >= is.window ? at - is.window + 1 : 0;
        int64_t wide = (is.length + LANES - 1) / LANES * LANES;
        float* own = scores + omp_get_thread_num() * (is.heads / is.kv_heads) * wide;
        const W* query = q + r * q_dim + h * hd;
        float scale = 1.0f / std::sqrt((float)hd), highest[G];
        for (int g = 0; g < G; g++) highest[g] = -INFINITY;
        int64_t begin = first / LANES * LANES, end = at / LANES * LANES + LANES, block = begin;
        // Two blocks at once: one sum per head alone would wait for itself.
        for (; block + 2 * LANES <= end; block += 2 * LANES) score<G, 2>(query, keys + base, own, wide, block, scale);
        for (; block < end; block += LANES) score<G, 1>(query, keys + base, own, wide, block, scale);
        for (int g = 0; g < G; g++) {
            float* mine = own + g * wide;
            for (int64_t p = begin; p < first; p++) mine[p] = -INFINITY;
            for (int64_t p = at + 1; p < end; p++) mine[p] = -INFINITY;
            vec top = all(-INFINITY);
            for (int64_t p = begin; p < end; p += LANES) { vec one = load(mine + p); top = one > top ? one : top; }
            for (int lane = 0; lane < LANES; lane++) highest[g] = top[lane] > highest[g] ? top[lane] : highest[g];
        }
        float total[G];
        for (int g = 0; g < G; g++) {
            vec sum = {};
            for (int64_t p = begin; p < end; p += LANES) {
                vec one = load(own + g * wide + p), chance = exponential(one - highest[g]);
                chance = one == -INFINITY ? all(0.0f) : chance;
                store(own + g * wide + p, chance);
                sum += chance;
            }
            total[g] = 0;
            for (int lane = 0; lane < LANES; lane++) total[g] += sum[lane];
        }
        int64_t d = 0;
        for (; d + 4 * LANES <= hd; d += 4 * LANES) mix<G, 4>(values + base + d, own, wide, first, at, total, r, h, d);
        for (; d < hd; d += LANES) mix<G, 1>(values + base + d, own, wide, first, at, total, r, h, d);
    }

    // Scores of B blocks of 16 positions.
    template <int G, int B> inline void score(const W* query, const W* key, float* own, int64_t wide, int64_t block, float scale) {
        int64_t hd = is.head_dim;
        vec sums[B][G] = {};
        for (int64_t unit = 0; unit < hd / S; unit++)
#pragma GCC unroll 8
            for (int b = 0; b < B; b++)
#pragma GCC unroll 8
                for (int g = 0; g < G; g++)
                    sums[b][g] = Unit<W>::madd(sums[b][g], query + g * hd + unit * S, key + (block + b * LANES) * hd + unit * LANES * S);
        for (int b = 0; b < B; b++)
            for (int g = 0; g < G; g++) store(own + g * wide + block + b * LANES, sums[b][g] * scale);
    }

    // Values weighed by their chances, D times 16 columns from `d` on.
    template <int G, int D> inline void mix(const W* value, const float* own, int64_t wide, int64_t first, int64_t at, const float* total, int64_t r, int64_t h, int64_t d) {
        vec sums[G][D] = {};
        for (int64_t p = first; p <= at; p++) {
            vec part[D];
#pragma GCC unroll 8
            for (int c = 0; c < D; c++) part[c] = load_wide(value + p * is.head_dim + c * LANES);
#pragma GCC unroll 8
            for (int g = 0; g < G; g++)
#pragma GCC unroll 8
                for (int c = 0; c < D; c++) sums[g][c] += part[c] * own[g * wide + p];
        }
        for (int g = 0; g < G; g++)
            for (int c = 0; c < D; c++)
                for (int lane = 0; lane < LANES; lane++)
                    put(mixed + r * q_dim + (h + g) * is.head_dim + d + c * LANES + lane, sums[g][c][lane] / total[g]);
    }

    void attend_all(int64_t index, const int64_t* rows, int64_t count) {
        int64_t group = is.heads / is.kv_heads;
        Share mine = share(count * is.kv_heads, 1);
        for (int64_t item = mine.first; item < mine.stop; item++) {
            int64_t r = item / is.kv_heads, kv = item % is.kv_heads, h = kv * group, stop = h + group;
            for (; h + 4 <= stop; h += 4) attend<4>(index, rows, r, kv, h);
            switch (stop - h) {
                case 3: attend<3>(index, rows, r, kv, h); break;
                case 2: attend<2>(index, rows, r, kv, h); break;
                case 1: attend<1>(index, rows, r, kv, h); break;
            }
        }
    }

    // Every thread comes here. `y`: where the part's result goes; the residual stream itself where it is null.
    void attention(int64_t index, const int64_t* rows, int64_t count, float* x, float* y) {
        Layer<W>& one = layer[index];
        norm_rows(x, count, one.attention_norm.data());
#pragma omp barrier
        Share mine = share(one.qkv.blocks, 4);
        const float* bias = one.qkv_bias.empty() ? nullptr : one.qkv_bias.data();
        product(one.qkv, normed, is.dim, count, mine.first, mine.stop, [&](int64_t r, int64_t b, vec sums) {
            store(together + r * fused + b * LANES, bias ? sums + load(bias + b * LANES) : sums);
        });
#pragma omp barrier
        spread(index, rows, count);
#pragma omp barrier
        attend_all(index, rows, count);
#pragma omp barrier
        add(one.out, mixed, q_dim, count, one.out_bias, x, y);
    }
    void feed_forward(int64_t index, int64_t count, float* x, float* y) {
        Layer<W>& one = layer[index];
        norm_rows(x, count, one.ffn_norm.data());
#pragma omp barrier
        Share mine = share(one.gate_up.blocks, 4);
        mine.first = mine.first / 2 * 2;
        vec gates[8][2];
        product(one.gate_up, normed, is.dim, count, mine.first, mine.stop, [&](int64_t r, int64_t b, vec sums) {
            vec& gate = gates[r % 8][b / 2 % 2];
            if (b % 2 == 0) { gate = sums; return; }
            vec act = gate / (1.0f + exponential(-gate)) * sums;
            W* to = inner + r * ffn_wide + b / 2 * LANES;
            for (int lane = 0; lane < LANES; lane++) put(to + lane, act[lane]);
        });
#pragma omp barrier
        static const std::vector<float> none;
        add(one.down, inner, ffn_wide, count, none, x, y);
    }
    void add(const Matrix<W>& w, const W* in, int64_t stride, int64_t count, const std::vector<float>& given, float* x, float* y) {
        Share mine = share(w.blocks, 2);
        const float* bias = given.empty() ? nullptr : given.data();
        product(w, in, stride, count, mine.first, mine.stop, [&](int64_t r, int64_t b, vec sums) {
            int64_t at = r * is.dim + b * LANES;
            if (bias) sums += load(bias + b * LANES);
            if (y) store(y + at, sums); else store(x + at, load(x + at) + sums);
        });
#pragma omp barrier
    }

    void layers(const int64_t* rows, int64_t count, float* x, int64_t first, int64_t stop, int64_t parts, float* y) override {
#pragma omp parallel num_threads(is.threads)
        for (int64_t index = first; index < stop; index++) {
            if (parts & 1) attention(index, rows, count, x, y);
            if (parts & 2) feed_forward(index, count, x, y);
        }
    }

    void logits(const float* hidden, int64_t count, float* out) override {
        const Matrix<W>& w = tied ? embedding : head;
#pragma omp parallel num_threads(is.threads)
        {
            Share rows = share(count, 1);
            for (int64_t r = rows.first; r < rows.stop; r++)
                for (int64_t d = 0; d < is.dim; d++) put(normed + r * is.dim + d, hidden[r * is.dim + d]);
#pragma omp barrier
            Share mine = share(w.blocks, 4);
            int64_t wide = w.blocks * LANES;
            product(w, normed, is.dim, count, mine.first, mine.stop, [&](int64_t r, int64_t b, vec sums) {
                store(out + r * wide + b * LANES, sums);
            });
        }
    }
};

extern "C" {
Any* stage_new(const Sizes* sizes, int64_t is_bf16, const float* cosine, const float* sine) {
    if (is_bf16) return new Model<bf16>(*sizes, cosine, sine);
    return new Model<float>(*sizes, cosine, sine);
}
void stage_free(Any* stage) { delete stage; }
void stage_matrix(Any* stage, int64_t layer, int64_t which, const void* from, int64_t n, int64_t k) { stage->matrix(layer, which, from, n, k); }
void stage_vector(Any* stage, int64_t layer, int64_t which, const float* from, int64_t n) { stage->vector(layer, which, from, n); }
void stage_embed(Any* stage, const int64_t* rows, int64_t count, int64_t first, float* x) { stage->embed(rows, count, first, x); }
void stage_layers(Any* stage, const int64_t* rows, int64_t count, float* x, int64_t first, int64_t stop, int64_t parts, float* y) {
    stage->layers(rows, count, x, first, stop, parts, y);
}
void stage_logits(Any* stage, const float* hidden, int64_t count, float* out) { stage->logits(hidden, count, out); }
}
