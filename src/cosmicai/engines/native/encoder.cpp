// The folded transformer of AstroMAE (cosmicai/models/fold.py), for SETS * LANES galaxies at a time.
//
// A chunk of galaxies stays in the processor's caches from its pixels to its features; the weights pass by. Its matrix
// products are those of products.h, all else is float32. Sizes that all networks share are constants, and those by
// which the published network and the demo's differ are parameters of templates, so that the compiler knows every loop.
#include <algorithm>
#include <memory>
#include <utility>

#include "products.h"

constexpr int BANDS = 5, SIDE = 32, PATCH = 8, PATCHES = 16, TOKENS = 17;  // the class token is the first
constexpr int PIXELS = BANDS * PATCH * PATCH, CUTOUT = BANDS * SIDE * SIDE;
constexpr int HEAD = 16;                         // width of a head of attention
constexpr int CHANNELS = 4, CHANNELS_WITHIN = 16;  // of a group of the convolutions, outside and within
constexpr int CHUNK = SETS * LANES;            // galaxies
constexpr int COLUMNS = SETS * TOKENS, PATCH_COLUMNS = SETS * PATCHES;  // token by token, set by set
constexpr int TOGETHER = 4;                    // heads whose queries, keys and values are computed at a time
constexpr float NORM_EPS = 1e-6f;

// Without a name for the linker: libraries for several instructions may be loaded into one process.
namespace {

struct Network {
    virtual ~Network() = default;
    virtual void encode(const float *image, float *encoded, long galaxies) const = 0;
};

template <int WIDTH, int HIDDEN>
struct Encoder final : Network {
    static constexpr int HEADS = WIDTH / HEAD, GROUPS = WIDTH / CHANNELS;
    // The hidden layer is computed in pieces, so that tiles find a piece in the first cache.
    static constexpr int PIECES = TILE_PARTS ? 4 : 1, PIECE = HIDDEN / PIECES;

    struct Block {
        Layer qkv, proj, mlp_in;
        std::vector<Layer> mlp_out;  // of each piece
        std::vector<float> convolution_in, bias_in, convolution_out, bias_out;
    };

    // What a thread needs for a chunk. Tokens are (COLUMNS, WIDTH); queries, keys and values of some heads are
    // (SETS, TOGETHER, 3, TOKENS, HEAD).
    struct Scratch {
        Arena arena;
        Vector *tokens = arena.allocate<Vector>(COLUMNS * WIDTH);
        Vector *heads = arena.allocate<Vector>(SETS * TOGETHER * 3 * TOKENS * HEAD);
        Operand *pixels = arena.allocate<Operand>(operand_size(BLOCK, PIXELS));
        Operand *normalized = arena.allocate<Operand>(operand_size(COLUMNS, WIDTH));
        Operand *attended = arena.allocate<Operand>(operand_size(COLUMNS, WIDTH));
        Operand *hidden = arena.allocate<Operand>(operand_size(BLOCK, PIECE));
    };

    Arena arena;
    std::vector<Layer> patch;  // one
    std::vector<float> position;
    std::vector<Block> blocks;

    // `constants` are in the order of `list_constants` in network.py.
    Encoder(const float *constants, int depth) {
        auto take = [&](size_t count) { return std::exchange(constants, constants + count); };
        auto copy = [&](size_t count) {
            const float *from = take(count);
            return std::vector<float>(from, from + count);
        };
        patch.emplace_back(arena, take(WIDTH * PIXELS), nullptr, WIDTH, PIXELS, PIXELS);
        position = copy(TOKENS * WIDTH);
        std::vector<int> order;  // of the outputs of qkv: each head has its queries, keys and values side by side
        for (int head = 0; head < HEADS; head++)
            for (int part = 0; part < 3; part++)
                for (int d = 0; d < HEAD; d++) order.push_back(part * WIDTH + head * HEAD + d);
        for (int number = 0; number < depth; number++) {
            std::vector<float> qkv = copy(3 * WIDTH * WIDTH), qkv_bias = copy(3 * WIDTH);
            for (int i = 0; i < WIDTH * WIDTH; i++) qkv[i] *= LOG2_E;  // of queries: softmax by powers of 2
            for (int i = 0; i < WIDTH; i++) qkv_bias[i] *= LOG2_E;
            Layer first(arena, qkv.data(), qkv_bias.data(), 3 * WIDTH, WIDTH, WIDTH, order.data());
            const float *weight = take(WIDTH * WIDTH);
            Layer proj(arena, weight, take(WIDTH), WIDTH, WIDTH, WIDTH);
            auto within = copy(HIDDEN * CHANNELS), bias_within = copy(HIDDEN);
            auto outside = copy(WIDTH * CHANNELS_WITHIN), bias_outside = copy(WIDTH);
            weight = take(HIDDEN * WIDTH);
            Layer mlp_in(arena, weight, take(HIDDEN), HIDDEN, WIDTH, WIDTH);
            weight = take(WIDTH * HIDDEN);
            const float *bias = take(WIDTH);
            std::vector<Layer> mlp_out;
            for (int piece = 0; piece < PIECES; piece++)
                mlp_out.emplace_back(arena, weight + piece * PIECE, piece ? nullptr : bias, WIDTH, PIECE, HIDDEN);
            blocks.push_back({first, proj, mlp_in, mlp_out, within, bias_within, outside, bias_outside});
        }
    }

    static size_t count_constants(int depth) {
        size_t block = size_t(WIDTH) * (4 * WIDTH + 2 * HIDDEN + 4 + CHANNELS_WITHIN + 2) + HIDDEN * (CHANNELS + 2);
        return WIDTH * (PIXELS + TOKENS) + depth * block;
    }

    void encode(const float *image, float *encoded, long galaxies) const override {
        thread_local std::unique_ptr<Scratch> own;  // of the thread, until it ends
        if (!own) own.reset(new Scratch);
        begin_tiles();
        for (long first = 0; first < galaxies; first += CHUNK) {
            long count = std::min<long>(CHUNK, galaxies - first);
            embed(*own, image + first * CUTOUT, count);
            for (const Block &block : blocks) transform(*own, block);
            pool(*own, encoded + first * WIDTH, count);
        }
        end_tiles();
    }

    // Pixels of `count` galaxies to tokens; the last galaxy stands in for those that are missing.
    void embed(Scratch &s, const float *image, long count) const {
        for (int set = 0; set < SETS; set++)
            for (int k = 0; k < WIDTH; k++) s.tokens[set * WIDTH + k] = all(position[k]);
        each_block<PATCH_COLUMNS>([&](int first, auto columns) ALWAYS_INLINE {
            for (int c = 0; c < columns; c++)
                for (int k = 0; k < PIXELS; k += 4) {
                    const int patch = (first + c) / SETS, set = (first + c) % SETS;
                    const int band = k / (PATCH * PATCH), y = patch / 4 * PATCH + k / PATCH % PATCH;
                    const float *pixel = image + (band * SIDE + y) * SIDE + patch % 4 * PATCH + k % PATCH;
                    Vector values[4];
                    for (int lane = 0; lane < LANES; lane++)
                        for (int i = 0; i < 4; i++)
                            values[i][lane] = pixel[std::min<long>(set * LANES + lane, count - 1) * CUTOUT + i];
                    store_operand<4>(s.pixels, PIXELS, c, k, values);
                }
            auto place_token = [&](int row, int c, Vector *sums) ALWAYS_INLINE {
                const int column = SETS + first + c;
                const float *place = &position[column / SETS * WIDTH + row];
                for (int i = 0; i < ROWS; i++) s.tokens[column * WIDTH + row + i] = sums[i] + place[i];
            };
            multiply_columns<PIXELS, columns>(patch[0], 0, WIDTH, s.pixels, place_token);
        });
    }

    // One transformer block, in place.
    void transform(Scratch &s, const Block &block) const {
        for (int c = 0; c < COLUMNS; c++) normalize_column(s, c);
        for (int head = 0; head < HEADS; head += TOGETHER) {
            const int start = head * 3 * HEAD;
            each_block<COLUMNS>([&](int first, auto columns) ALWAYS_INLINE {
                const Operand *x = s.normalized + first * operand_size(1, WIDTH);
                auto by_head = [&](int row, int c, Vector *sums) ALWAYS_INLINE {
                    const int token = (first + c) / SETS, set = (first + c) % SETS, part = (row - start) / HEAD;
                    Vector *to = s.heads + ((set * TOGETHER * 3 + part) * TOKENS + token) * HEAD + row % HEAD;
                    for (int i = 0; i < ROWS; i++) to[i] = sums[i];
                };
                multiply_columns<WIDTH, columns>(block.qkv, start, start + TOGETHER * 3 * HEAD, x, by_head);
            });
            for (int set = 0; set < SETS; set++)
                for (int own = 0; own < TOGETHER; own++) attend(s, set, own, head + own);
        }
        for (int c = SETS; c < COLUMNS; c++) convolve(block, s.tokens + c * WIDTH);
        each_block<COLUMNS>([&](int first, auto columns) ALWAYS_INLINE {
            Vector *tokens = s.tokens + first * WIDTH;
            auto add = [&](int row, int c, Vector *sums) ALWAYS_INLINE {
                for (int i = 0; i < ROWS; i++) tokens[c * WIDTH + row + i] += sums[i];
            };
            const Operand *attended = s.attended + first * operand_size(1, WIDTH);
            Operand *normalized = s.normalized + first * operand_size(1, WIDTH);
            multiply_columns<WIDTH, columns>(block.proj, 0, WIDTH, attended, add);
            for (int c = 0; c < columns; c++) normalize_column(s, first + c);
            for (int piece = 0; piece < PIECES; piece++) {
                const int start = piece * PIECE;
                auto activate = [&](int row, int c, Vector *sums) ALWAYS_INLINE {
                    gelu<ROWS>(sums);
                    store_operand<ROWS>(s.hidden, PIECE, c, row - start, sums);
                };
                multiply_columns<WIDTH, columns>(block.mlp_in, start, start + PIECE, normalized, activate);
                multiply_columns<PIECE, columns>(block.mlp_out[piece], 0, WIDTH, s.hidden, add);
            }
        });
    }

    // The attention of one head, the `own`th of those that are computed together: softmax of the scores of each query,
    // times the values.
    static void attend(Scratch &s, int set, int own, int head) {
        const Vector *queries = s.heads + (set * TOGETHER + own) * 3 * TOKENS * HEAD;
        const Vector *keys = queries + TOKENS * HEAD, *values = keys + TOKENS * HEAD;
        for (int token = 0; token < TOKENS; token++) {
            Vector scores[TOKENS] = {};
            for (int d = 0; d < HEAD; d++) {
                Vector query = queries[token * HEAD + d];
                UNROLL for (int other = 0; other < TOKENS; other++) scores[other] += query * keys[other * HEAD + d];
            }
            Vector largest = scores[0], sum = {};
            UNROLL for (int other = 1; other < TOKENS; other++)
                largest = scores[other] > largest ? scores[other] : largest;
            UNROLL for (int other = 0; other < TOKENS; other++) scores[other] -= largest;
            exp2_of<9>(scores);
            exp2_of<TOKENS - 9>(scores + 9);
            UNROLL for (int other = 0; other < TOKENS; other++) sum += scores[other];
            Vector scale = 1.0f / sum;
            for (int d = 0; d < HEAD; d += 4) {
                Vector mean[4] = {};
                UNROLL for (int other = 0; other < TOKENS; other++)
                    UNROLL for (int i = 0; i < 4; i++) mean[i] += scores[other] * values[other * HEAD + d + i];
                UNROLL for (int i = 0; i < 4; i++) mean[i] *= scale;
                store_operand<4>(s.attended, WIDTH, token * SETS + set, head * HEAD + d, mean);
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

    // LayerNorm without scale and shift, which are folded into the next layer: y = (x - mean) * scale.
    struct Norm {
        Vector mean, scale;

        explicit Norm(const Vector *x) {
            Vector sums[4] = {}, squares[4] = {};
            for (int k = 0; k < WIDTH; k += 4) UNROLL for (int i = 0; i < 4; i++) sums[i] += x[k + i];
            mean = ((sums[0] + sums[1]) + (sums[2] + sums[3])) * (1.0f / WIDTH);
            for (int k = 0; k < WIDTH; k += 4)
                UNROLL for (int i = 0; i < 4; i++) squares[i] += (x[k + i] - mean) * (x[k + i] - mean);
            Vector variance = ((squares[0] + squares[1]) + (squares[2] + squares[3])) * (1.0f / WIDTH);
            scale = 1.0f / square_root(variance + NORM_EPS);
        }
    };

    static void normalize_column(Scratch &s, int column) {
        const Vector *x = s.tokens + column * WIDTH;
        const Norm norm(x);
        for (int k = 0; k < WIDTH; k += 4) {
            Vector y[4];
            UNROLL for (int i = 0; i < 4; i++) y[i] = (x[k + i] - norm.mean) * norm.scale;
            store_operand<4>(s.normalized, WIDTH, column, k, y);
        }
    }

    // The mean over the patches, normalized, of `count` galaxies.
    static void pool(const Scratch &s, float *encoded, long count) {
        for (int set = 0; set < SETS; set++) {
            Vector mean[WIDTH], squares = {};
            for (int k = 0; k < WIDTH; k++) {
                Vector sum = {};
                for (int token = 1; token < TOKENS; token++) {
                    Vector x = s.tokens[(token * SETS + set) * WIDTH + k];
                    sum += x;
                    squares += x * x;
                }
                mean[k] = sum * (1.0f / PATCHES);
            }
            const Norm norm(mean);
            // Where the squares of tokens overflow, LayerNorm returns 0 for them; 0 * infinity is NaN.
            for (int k = 0; k < WIDTH; k++) {
                Vector y = (mean[k] - norm.mean) * norm.scale + 0.0f * squares;
                for (long lane = 0; lane < LANES && set * LANES + lane < count; lane++)
                    encoded[(set * LANES + lane) * WIDTH + k] = y[lane];
            }
        }
    }
};

}  // namespace

// The interface for ctypes (library.py). A network may be used by any number of threads at a time.

template <int WIDTH, int HIDDEN>
static Network *create(int depth, const float *constants, size_t count) {
    if (count != Encoder<WIDTH, HIDDEN>::count_constants(depth)) return nullptr;
    return new (std::nothrow) Encoder<WIDTH, HIDDEN>(constants, depth);
}

extern "C" {

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
