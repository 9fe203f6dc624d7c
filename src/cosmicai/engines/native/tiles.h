// Tiles of AMX, matrices of 16 rows of 64 bytes in registers 0 to 7 of the processor, and a twin of them in plain C++.
//
// With PLAIN_TILES the registers are an array, so that all that uses them can be tested on any processor. The sums of
// the two differ in their last bits, since AMX adds the products of even and odd inputs apart.
#pragma once
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "vectors.h"

typedef uint16_t Half;  // the bits of a bfloat16

constexpr int TILE_ROWS = 16, TILE_INPUTS = 32, TILE = TILE_ROWS * TILE_INPUTS;  // values of bfloat16 in a tile

#if TILE_PARTS == 0

INLINE void begin_tiles() {}

INLINE void end_tiles() {}

#elif defined(PLAIN_TILES)

thread_local unsigned char tile_registers[8][2 * TILE];

INLINE void begin_tiles() {}

INLINE void end_tiles() {}

template <int to>
INLINE void load_tile(const void *from) {
    std::memcpy(tile_registers[to], from, 2 * TILE);
}

template <int from>
INLINE void store_tile(void *to) {
    std::memcpy(to, tile_registers[from], 2 * TILE);
}

template <int tile>
INLINE void clear_tile() {
    std::memset(tile_registers[tile], 0, 2 * TILE);
}

INLINE float widen(Half value) {
    uint32_t bits = uint32_t(value) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}

// sums (16 rows, 16 lanes) += weights (16 rows, 32 inputs) times activations (16 pairs of inputs, 16 lanes, 2).
template <int sums, int weights, int activations>
void multiply_tiles() {
    float total[TILE_ROWS][LANES], wide[TILE_INPUTS][LANES];
    Half a[TILE_ROWS][TILE_INPUTS], b[TILE_INPUTS / 2][LANES][2];
    std::memcpy(total, tile_registers[sums], sizeof total);
    std::memcpy(a, tile_registers[weights], sizeof a);
    std::memcpy(b, tile_registers[activations], sizeof b);
    for (int k = 0; k < TILE_INPUTS; k++)
        for (int lane = 0; lane < LANES; lane++) wide[k][lane] = widen(b[k / 2][lane][k % 2]);
    for (int row = 0; row < TILE_ROWS; row++)
        for (int k = 0; k < TILE_INPUTS; k++) {
            float weight = widen(a[row][k]);
            for (int lane = 0; lane < LANES; lane++) total[row][lane] += weight * wide[k][lane];
        }
    std::memcpy(tile_registers[sums], total, sizeof total);
}

#else

// All tiles have 16 rows of 64 bytes. The system must have been asked for them before (library.py).
INLINE void begin_tiles() {
    struct {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    } shape;
    static_assert(sizeof shape == 64, "as the processor reads it");
    for (int tile = 0; tile < 8; tile++) {
        shape.row_bytes[tile] = 64;
        shape.rows[tile] = TILE_ROWS;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(shape));
}

// Without it the system would save and restore the tiles whenever another thread runs.
INLINE void end_tiles() { __asm__ volatile("tilerelease"); }

template <int to>
INLINE void load_tile(const void *from) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(64L), "i"(to) : "memory");
}

template <int from>
INLINE void store_tile(void *to) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(64L), "i"(from) : "memory");
}

template <int tile>
INLINE void clear_tile() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(tile));
}

// sums (16 rows, 16 lanes) += weights (16 rows, 32 inputs) times activations (16 pairs of inputs, 16 lanes, 2).
template <int sums, int weights, int activations>
INLINE void multiply_tiles() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(weights), "i"(activations));
}

#endif

// The bfloat16 nearest to each value; NaN stays NaN. Lane by lane, `even` and `odd` lie side by side.
INLINE Integers round_pairs(Vector even, Vector odd) {
#ifdef __AVX512BF16__
    // The instruction puts the 16 values of `odd` behind those of `even`.
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (Integers)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even));
#else
    typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
    auto rounded = [](Vector value) {
        Bits bits = (Bits)value, nearest = bits + 0x7fff + ((bits >> 16) & 1);
        return value == value ? nearest : Bits{} + 0x7fc00000;
    };
    return (Integers)((rounded(even) >> 16) | (rounded(odd) & 0xffff0000));
#endif
}
