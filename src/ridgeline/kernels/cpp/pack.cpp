// Weights into tiles of 16 rows and back, bit for bit. One layout serves one row and a thousand, on every instruction set.
//   F32   [columns][16 rows]                                      64 B a column
//   BF16  [columns / 2][16 rows][2]                               64 B a pair; odd columns padded with 0
//   Q8_0  per pair of groups of 32: d fp16[2][16], then per group 8 x 64 B: lane i of 32 bits = 4 consecutive k of row i,
//         stored + 128 (VNNI wants one unsigned side)             544 B a group = 16 x 34; an odd last group stands alone
//   Q4_1  per group of 32: d fp16[16], m fp16[16]; 4 x 64 B: low nibbles of lane i = 4 consecutive k of row i, high
//         nibbles = the next 4                                    320 B = 16 x 20
// Rows are padded to 16 with zero scales. File order: F32, BF16 row-major; Q8_0, Q4_1 as GGUF blocks along each row.
#include <string.h>

#include "kernels.h"

namespace ridgeline {
namespace {

constexpr uint32_t LOW = 0x0f0f0f0fu;

uint32_t word(const uint8_t* p) {
  uint32_t x;
  memcpy(&x, p, 4);
  return x;
}

// T[rows][columns] <-> T[columns / pair][16][pair] of one tile.
template <typename T>
void plain_tile(uint8_t* file, uint8_t* tile, int rows, int64_t columns, int pair, bool packing) {
  T* packed = reinterpret_cast<T*>(tile);
  if (packing) memset(tile, 0, round_up(columns, pair) * 16 * sizeof(T));
  for (int64_t begin = 0; begin < columns; begin += 64) {  // 16 rows x 64 columns stay in the first cache
    const int64_t end = begin + 64 < columns ? begin + 64 : columns;
    for (int i = 0; i < rows; i++) {
      T* row = reinterpret_cast<T*>(file) + i * columns;
      for (int64_t k = begin; k < end; k++) {
        T& place = packed[k / pair * 16 * pair + i * pair + k % pair];
        if (packing)
          place = row[k];
        else
          row[k] = place;
      }
    }
  }
}

// GGUF block of 34 bytes: d, 32 x int8.
void q8_block(uint8_t* block, uint8_t* tile, int64_t g, int64_t groups, int lane, bool packing) {
  uint8_t *scale = tile + q8_scales(g) + lane * 2, *at = tile + q8_quants(g, groups) + lane * 4;
  if (packing) {
    memcpy(scale, block, 2);
    for (int j = 0; j < 8; j++) {
      uint32_t q = word(block + 2 + 4 * j) ^ 0x80808080u;
      memcpy(at + 64 * j, &q, 4);
    }
  } else {
    memcpy(block, scale, 2);
    for (int j = 0; j < 8; j++) {
      uint32_t q = word(at + 64 * j) ^ 0x80808080u;
      memcpy(block + 2 + 4 * j, &q, 4);
    }
  }
}

// GGUF block of 20 bytes: d, m, then byte j = element j (low) and element j + 16 (high).
void q4_block(uint8_t* block, uint8_t* tile, int64_t g, int64_t, int lane, bool packing) {
  uint8_t *group = tile + g * 320, *at = group + 64 + lane * 4;
  if (packing) {
    memcpy(group + lane * 2, block, 2);
    memcpy(group + 32 + lane * 2, block + 2, 2);
    for (int half = 0; half < 2; half++) {  // elements 8 half .. 8 half + 7, and the same + 16
      uint32_t a = word(block + 4 + 8 * half), b = word(block + 8 + 8 * half);
      uint32_t low = (a & LOW) | (b & LOW) << 4, high = (a >> 4 & LOW) | (b & ~LOW);
      memcpy(at + 64 * half, &low, 4);
      memcpy(at + 128 + 64 * half, &high, 4);
    }
  } else {
    memcpy(block, group + lane * 2, 2);
    memcpy(block + 2, group + 32 + lane * 2, 2);
    for (int half = 0; half < 2; half++) {
      uint32_t low = word(at + 64 * half), high = word(at + 128 + 64 * half);
      uint32_t a = (low & LOW) | (high & LOW) << 4, b = (low >> 4 & LOW) | (high & ~LOW);
      memcpy(block + 4 + 8 * half, &a, 4);
      memcpy(block + 8 + 8 * half, &b, 4);
    }
  }
}

int32_t convert(int32_t format, uint8_t* file, int32_t rows, int32_t columns, uint8_t* packed, bool packing) {
  const int64_t bytes = rows > 0 && columns > 0 ? tile_bytes(format, columns) : -1;
  const bool grouped = format == RL_Q8_0 || format == RL_Q4_1;
  if (bytes < 0 || !file || !packed || (grouped && columns % RL_GROUP)) return -1;
  const int64_t groups = columns / RL_GROUP;
  const int64_t block = format == RL_Q8_0 ? 34 : 20;
  for (int64_t row = 0; row < rows; row += RL_TILE_ROWS) {
    uint8_t* tile = packed + row / RL_TILE_ROWS * bytes;
    const int count = rows - row < RL_TILE_ROWS ? static_cast<int>(rows - row) : RL_TILE_ROWS;
    if (format == RL_F32) {
      plain_tile<uint32_t>(file + row * columns * 4, tile, count, columns, 1, packing);
    } else if (format == RL_BF16) {
      plain_tile<uint16_t>(file + row * columns * 2, tile, count, columns, 2, packing);
    } else {
      if (packing && count < RL_TILE_ROWS) memset(tile, 0, bytes);
      for (int64_t g = 0; g < groups; g++)
        for (int i = 0; i < count; i++) {
          uint8_t* from = file + ((row + i) * groups + g) * block;
          (format == RL_Q8_0 ? q8_block : q4_block)(from, tile, g, groups, i, packing);
        }
    }
  }
  return 0;
}

}  // namespace
}  // namespace ridgeline

using namespace ridgeline;

int64_t rl_packed_bytes(int32_t format, int32_t rows, int32_t columns) {
  if (rows <= 0 || columns <= 0) return -1;
  if ((format == RL_Q8_0 || format == RL_Q4_1) && columns % RL_GROUP) return -1;
  const int64_t bytes = tile_bytes(format, columns);
  return bytes < 0 ? -1 : round_up(rows, RL_TILE_ROWS) / RL_TILE_ROWS * bytes;
}

int32_t rl_pack(int32_t format, const void* source, int32_t rows, int32_t columns, void* packed) {
  uint8_t* file = static_cast<uint8_t*>(const_cast<void*>(source));  // only read when packing
  return convert(format, file, rows, columns, static_cast<uint8_t*>(packed), true);
}

int32_t rl_unpack(int32_t format, const void* packed, int32_t rows, int32_t columns, void* source) {
  uint8_t* tiles = static_cast<uint8_t*>(const_cast<void*>(packed));  // only read when unpacking
  return convert(format, static_cast<uint8_t*>(source), rows, columns, tiles, false);
}
