// The folded transformer of AstroMAE (cosmicai/models/fold.py) in float32, for LANES galaxies at a time.
//
// A chunk of LANES galaxies stays in the processor's caches from its pixels to its features; the weights pass by. Sizes
// that all networks share are constants, and those by which the published network and the demo's differ are parameters
// of templates, so that the compiler knows every loop.
#include <algorithm>
#include <memory>
#include <new>
#include <utility>

#include "products.h"

constexpr int BANDS = 5, SIDE = 32, PATCH = 8, PATCHES = 16, TOKENS = 17;  // the class token is the first
constexpr int PIXELS = BANDS * PATCH * PATCH, CUTOUT = BANDS * SIDE * SIDE;
constexpr int HEAD = 16;                         // width of a head of attention
constexpr int CHANNELS = 4, CHANNELS_WITHIN = 16;  // of a group of the convolutions, outside and within
constexpr float NORM_EPS = 1e-6f;

struct Network {
    virtual ~Network() = default;
    virtual void encode(const float *image, float *encoded, long galaxies) const = 0;
    virtual int width() const = 0;
};

template <int WIDTH, int HIDDEN>
struct Encoder final : Network {
    static constexpr int HEADS = WIDTH / HEAD, GROUPS = WIDTH / CHANNELS;

    struct Block {
        Layer qkv, proj, mlp_in, mlp_out;
        std::vector<float> convolution_in, bias_in, convolution_out, bias_out;
    };

    // What a thread needs for a chunk. Tokens are (TOKENS, WIDTH).
    struct Scratch {
        Vector pixels[3 * PIXELS], tokens[TOKENS * WIDTH], attended[TOKENS * WIDTH];
        Vector heads[HEADS * 3 * TOKENS * HEAD];  // queries, keys and values (HEADS, 3, TOKENS, HEAD)
        Vector normalized[3 * WIDTH], hidden[3 * HIDDEN];
    };

    std::vector<Layer> patch;  // one
    std::vector<float> position;
    std::vector<Block> blocks;

    // `constants` are in the order of `list_constants` in constants.py.
    Encoder(const float *constants, int depth) {
        auto take = [&](size_t count) { return std::exchange(constants, constants + count); };
        auto copy = [&](size_t count) { const float *from = take(count); return std::vector<float>(from, from + count); };
        patch.emplace_back(take(WIDTH * PIXELS), nullptr, WIDTH, PIXELS);
        position = copy(TOKENS * WIDTH);
        std::vector<int> order;  // of the outputs of qkv: each head has its queries, keys and values side by side
        for (int head = 0; head < HEADS; head++)
            for (int part = 0; part < 3; part++)
                for (int d = 0; d < HEAD; d++) order.push_back(part * WIDTH + head * HEAD + d);
        for (int number = 0; number < depth; number++) {
            std::vector<float> qkv = copy(3 * WIDTH * WIDTH), qkv_bias = copy(3 * WIDTH);
            for (int i = 0; i < WIDTH * WIDTH; i++) qkv[i] *= LOG2_E;  // of queries: softmax by powers of 2
            for (int i = 0; i < WIDTH; i++) qkv_bias[i] *= LOG2_E;
            Layer first(qkv.data(), qkv_bias.data(), 3 * WIDTH, WIDTH, order.data());
            const float *weight = take(WIDTH * WIDTH);
            Layer proj(weight, take(WIDTH), WIDTH, WIDTH);
            auto within = copy(HIDDEN * CHANNELS), bias_within = copy(HIDDEN);
            auto outside = copy(WIDTH * CHANNELS_WITHIN), bias_outside = copy(WIDTH);
            weight = take(HIDDEN * WIDTH);
            Layer mlp_in(weight, take(HIDDEN), HIDDEN, WIDTH);
            weight = take(WIDTH * HIDDEN);
            Layer mlp_out(weight, take(WIDTH), WIDTH, HIDDEN);
            blocks.push_back({first, proj, mlp_in, mlp_out, within, bias_within, outside, bias_outside});
        }
    }

    static size_t count_constants(int depth) {
        size_t block = size_t(WIDTH) * (4 * WIDTH + 2 * HIDDEN + 4 + CHANNELS_WITHIN + 2) + HIDDEN * (CHANNELS + 2);
        return WIDTH * (PIXELS + TOKENS) + depth * block;
    }

    int width() const override { return WIDTH; }

    void encode(const float *image, float *encoded, long galaxies) const override {
        thread_local std::unique_ptr<Scratch> own;  // of the thread, until it ends
        if (!own) own.reset(new Scratch);
        for (long first = 0; first < galaxies; first += LANES) {
            long count = std::min<long>(LANES, galaxies - first);
            embed(*own, image + first * CUTOUT, count);
            for (const Block &block : blocks) transform(*own, block);
            pool(*own, encoded + first * WIDTH, count);
        }
    }

    // Pixels of `count` galaxies to tokens; the last galaxy stands in for those that are missing.
    void embed(Scratch &s, const float *image, long count) const {
        for (int k = 0; k < WIDTH; k++) s.tokens[k] = all(position[k]);
        each_three<PATCHES>([&](int first, auto columns) __attribute__((always_inline)) {
            for (int c = 0; c < columns; c++)
                for (int k = 0; k < PIXELS; k++) {
                    int band = k / (PATCH * PATCH), y = (first + c) / 4 * PATCH + k / PATCH % PATCH;
                    const float *pixel = image + (band * SIDE + y) * SIDE + (first + c) % 4 * PATCH + k % PATCH;
                    for (int lane = 0; lane < LANES; lane++)
                        s.pixels[c * PIXELS + k][lane] = pixel[std::min<long>(lane, count - 1) * CUTOUT];
                }
            multiply_columns<PIXELS, columns>(patch[0], WIDTH, s.pixels, [&](int row, int c, Vector *sums) __attribute__((always_inline)) {
                int token = 1 + first + c;
                for (int i = 0; i < ROWS; i++) s.tokens[token * WIDTH + row + i] = sums[i] + position[token * WIDTH + row + i];
            });
        });
    }

    // One transformer block, in place.
    void transform(Scratch &s, const Block &block) const {
        each_three<TOKENS>([&](int first, auto columns) __attribute__((always_inline)) {
            for (int c = 0; c < columns; c++) normalize(s.tokens + (first + c) * WIDTH, s.normalized + c * WIDTH, NORM_EPS);
            multiply_columns<WIDTH, columns>(block.qkv, 3 * WIDTH, s.normalized, [&](int row, int c, Vector *sums) __attribute__((always_inline)) {
                Vector *to = s.heads + (row / HEAD * TOKENS + first + c) * HEAD + row % HEAD;
                for (int i = 0; i < ROWS; i++) to[i] = sums[i];
            });
        });
        for (int head = 0; head < HEADS; head++) attend(s, head);
        for (int token = 1; token < TOKENS; token++) convolve(block, s.tokens + token * WIDTH);
        each_three<TOKENS>([&](int first, auto columns) __attribute__((always_inline)) {
            Vector *tokens = s.tokens + first * WIDTH;
            auto add = [&](int row, int c, Vector *sums) __attribute__((always_inline)) {
                for (int i = 0; i < ROWS; i++) tokens[c * WIDTH + row + i] += sums[i];
            };
            multiply_columns<WIDTH, columns>(block.proj, WIDTH, s.attended + first * WIDTH, add);
            for (int c = 0; c < columns; c++) normalize(tokens + c * WIDTH, s.normalized + c * WIDTH, NORM_EPS);
            multiply_columns<WIDTH, columns>(block.mlp_in, HIDDEN, s.normalized, [&](int row, int c, Vector *sums) __attribute__((always_inline)) {
                gelu<ROWS>(sums);
                for (int i = 0; i < ROWS; i++) s.hidden[c * HIDDEN + row + i] = sums[i];
            });
            multiply_columns<HIDDEN, columns>(block.mlp_out, WIDTH, s.hidden, add);
        });
    }

    // The attention of one head: softmax of the scores of each query, times the values.
    static void attend(Scratch &s, int head) {
        const Vector *queries = s.heads + head * 3 * TOKENS * HEAD, *keys = queries + TOKENS * HEAD, *values = keys + TOKENS * HEAD;
        for (int token = 0; token < TOKENS; token++) {
            Vector scores[TOKENS] = {};
            for (int d = 0; d < HEAD; d++) {
                Vector query = queries[token * HEAD + d];
                UNROLL for (int other = 0; other < TOKENS; other++) scores[other] += query * keys[other * HEAD + d];
            }
            Vector largest = scores[0], sum = {};
            UNROLL for (int other = 1; other < TOKENS; other++) largest = scores[other] > largest ? scores[other] : largest;
            UNROLL for (int other = 0; other < TOKENS; other++) scores[other] -= largest;
            exp2_of<9>(scores);
            exp2_of<TOKENS - 9>(scores + 9);
            UNROLL for (int other = 0; other < TOKENS; other++) sum += scores[other];
            Vector scale = 1.0f / sum;
            Vector *to = s.attended + token * WIDTH + head * HEAD;
            for (int d = 0; d < HEAD; d += 4) {
                Vector mean[4] = {};
                UNROLL for (int other = 0; other < TOKENS; other++)
                    UNROLL for (int i = 0; i < 4; i++) mean[i] += scores[other] * values[other * HEAD + d + i];
                UNROLL for (int i = 0; i < 4; i++) to[d + i] = mean[i] * scale;
            }
        }
    }

    // Add the parallel module's output to a token: two grouped 1x1 convolutions with SiLU between them.
    static void convolve(const Block &block, Vector *token) {
        const float *within = block.convolution_in.data(), *outside = block.convolution_out.data();
        for (int group = 0; group < GROUPS; group++) {
            Vector in[CHANNELS], out[CHANNELS];
            UNROLL for (int i = 0; i < CHANNELS; i++) in[i] = token[group * CHANNELS + i];
            UNROLL for (int i = 0; i < CHANNELS; i++) out[i] = in[i] + block.bias_out[group * CHANNELS + i];
            for (int first = 0; first < CHANNELS_WITHIN; first += 4) {
                Vector y[4];
                int row = group * CHANNELS_WITHIN + first;
                UNROLL for (int e = 0; e < 4; e++) y[e] = all(block.bias_in[row + e]);
                UNROLL for (int i = 0; i < CHANNELS; i++)
                    UNROLL for (int e = 0; e < 4; e++) y[e] += within[(row + e) * CHANNELS + i] * in[i];
                silu<4>(y);
                UNROLL for (int e = 0; e < 4; e++)
                    UNROLL for (int i = 0; i < CHANNELS; i++)
                        out[i] += outside[(group * CHANNELS + i) * CHANNELS_WITHIN + first + e] * y[e];
            }
            UNROLL for (int i = 0; i < CHANNELS; i++) token[group * CHANNELS + i] = out[i];
        }
    }

    // LayerNorm without scale and shift, which are folded into the next layer.
    static void normalize(const Vector *x, Vector *y, float eps) {
        Vector sums[4] = {}, squares[4] = {};
        for (int k = 0; k < WIDTH; k += 4) UNROLL for (int i = 0; i < 4; i++) sums[i] += x[k + i];
        Vector mean = ((sums[0] + sums[1]) + (sums[2] + sums[3])) * (1.0f / WIDTH);
        for (int k = 0; k < WIDTH; k += 4)
            UNROLL for (int i = 0; i < 4; i++) squares[i] += (x[k + i] - mean) * (x[k + i] - mean);
        Vector variance = ((squares[0] + squares[1]) + (squares[2] + squares[3])) * (1.0f / WIDTH);
        Vector scale = 1.0f / square_root(variance + eps);
        for (int k = 0; k < WIDTH; k++) y[k] = (x[k] - mean) * scale;
    }

    // The mean over the patches, normalized, of `count` galaxies.
    static void pool(Scratch &s, float *encoded, long count) {
        Vector squares = {};
        for (int k = 0; k < WIDTH; k++) {
            Vector sum = {};
            for (int token = 1; token < TOKENS; token++) {
                Vector x = s.tokens[token * WIDTH + k];
                sum += x;
                squares += x * x;
            }
            s.hidden[k] = sum * (1.0f / PATCHES);
        }
        normalize(s.hidden, s.normalized, NORM_EPS);
        // Where the squares of tokens overflow, LayerNorm returns 0 for them; 0 * infinity is NaN.
        for (int k = 0; k < WIDTH; k++) {
            Vector y = s.normalized[k] + 0.0f * squares;
            for (long lane = 0; lane < count; lane++) encoded[lane * WIDTH + k] = y[lane];
        }
    }
};

// The interface for ctypes (library.py). A network may be used by any number of threads at a time.

template <int WIDTH, int HIDDEN>
static Network *create(int depth, const float *constants, size_t count) {
    if (count != Encoder<WIDTH, HIDDEN>::count_constants(depth)) return nullptr;
    return new (std::nothrow) Encoder<WIDTH, HIDDEN>(constants, depth);
}

extern "C" {

int lanes() { return LANES; }

// Return a network of these sizes, or null if there is no code for them or `count` constants are not what it takes.
Network *create_network(int width, int hidden, int depth, const float *constants, size_t count) {
    if (width == 192 && hidden == 768) return create<192, 768>(depth, constants, count);
    if (width == 64 && hidden == 256) return create<64, 256>(depth, constants, count);
    return nullptr;
}

void destroy_network(Network *network) { delete network; }

// image (galaxies, 5, 32, 32) to encoded (galaxies, width).
void encode(const Network *network, const float *image, float *encoded, long galaxies) {
    network->encode(image, encoded, galaxies);
}
}
