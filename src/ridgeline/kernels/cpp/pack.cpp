// Weights into tiles of 16 rows and back, bit for bit. One layout serves one row and a thousand, on every instruction set.
//   F32   [columns][16 rows]                                      64 B a column
//   F16   [columns][16 rows]                                      32 B a column
//   BF16  [columns / 2][16 rows][2]                               64 B a pair; odd columns padded with 0
//   Q8_0  per pair of groups of 32: d fp16[2][16], then per group 8 x 64 B: lane i of 32 bits = 4 consecutive k of row i,
//         stored + 128 (VNNI wants one unsigned side)             544 B a group = 16 x 34; an odd last group stands alone
//   Q4_1  per group of 32: d fp16[16], m fp16[16], nibbles          320 B = 16 x 20
//   Q4_0  pairs like Q8_0, body: nibbles                             288 B = 16 x 18
//   Q5_0  pairs like Q8_0, body: 64 B, bit 8 b + j of lane i = bit 4 of element 4 j + b of row i; nibbles    352 B = 16 x 22
//   Q4_K  per 256: d fp16[16], dmin fp16[16]; 3 x 64 B: lane i = the block's scale bytes of row i; nibbles of 8 groups
//                                                                    2304 B = 16 x 144
//   Q6_K  pairs of 256, body: 4 x 64 B: lane i = 4 int8 scales of row i; per group nibbles, then 2 x 64 B: bits 8 b + 2 j of
//         lane i = bits 4 and 5 of element 4 j + b (+ 16 in the second) of row i                  3360 B = 16 x 210
//   INT8, INT4 (ZERO)  per 32 columns 8 x 64 B like Q8_0 (with zeros: the codes as they are), or nibbles; behind all tiles,
//         tile by tile: scales [groups][16], then zeros [groups][16], of four bits two groups a byte
//   E4M3, E5M2  [columns / 4][16 rows][4], padded with 0; behind all tiles: the f32 scales (of rows padded to 16)
// nibbles of a group of 32: 4 x 64 B: low nibbles of lane i = 4 consecutive k of row i, high nibbles = the next 4.
// Rows are padded to 16 with zero scales. File order: F32, F16, BF16 row-major; q formats as GGUF
// blocks along each row; INT formats and E formats with a scale a row: each row its codes (two of four bits a byte),
// scales, zeros; other E formats: all codes, then the scales.
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

// One 32-bit word from the file to the tile or back, `flip` inverted on the way.
void move(uint8_t* file, uint8_t* at, bool packing, uint32_t flip = 0) {
  const uint32_t x = word(packing ? file : at) ^ flip;
  memcpy(packing ? at : file, &x, 4);
}

// The 2 x 2 transpose of nibbles that takes (a, b) = words with their groups in low and high nibbles to one word a group;
// its own inverse. File: a, b; tile: low, high.
void move_nibbles(uint8_t* a, uint8_t* b, uint8_t* low, uint8_t* high, bool packing) {
  const uint32_t x = word(packing ? a : low), y = word(packing ? b : high);
  const uint32_t first = (x & LOW) | (y & LOW) << 4, second = (x >> 4 & LOW) | (y & ~LOW);
  memcpy(packing ? low : a, &first, 4);
  memcpy(packing ? high : b, &second, 4);
}

// 16 bytes whose byte j is element j (low) and element j + 16 (high).
void move_sixteen(uint8_t* file, uint8_t* at, bool packing) {
  for (int half = 0; half < 2; half++)  // elements 8 half .. 8 half + 7, and the same + 16
    move_nibbles(file + 8 * half, file + 8 * half + 4, at + 64 * half, at + 128 + 64 * half, packing);
}

// 32 bytes with one group in the low nibbles and another in the high ones.
void move_two_groups(uint8_t* file, uint8_t* low, uint8_t* high, bool packing) {
  for (int i = 0; i < 4; i++) move_nibbles(file + 8 * i, file + 8 * i + 4, low + 64 * i, high + 64 * i, packing);
}

// The file's bit 4 j + b <-> the tile's bit 8 b + j: each nibble is spread over four bytes by one multiplication.
void move_bits(uint8_t* file, uint8_t* at, bool packing) {
  uint32_t x = word(packing ? file : at), y = 0;
  for (int j = 0; j < 8; j++)
    y |= packing ? ((x >> 4 * j & 15) * 0x00204081u & 0x01010101u) << j
                 : ((x >> j & 0x01010101u) * 0x01020408u >> 24 & 15) << 4 * j;
  memcpy(packing ? at : file, &y, 4);
}

// 4 x 4 transposes of the bit pairs of each byte, their own inverse: file word j (of 4) holds group c at bits 2 c; the
// tile's word of group c holds file word j at bits 2 j.
void move_bit_pairs(uint8_t* file, uint8_t* at, bool packing) {
  uint32_t from[4], to[4] = {};
  for (int i = 0; i < 4; i++) from[i] = word(packing ? file + 4 * i : at + i * Q6_K_GROUP);
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++) to[i] |= (from[j] >> 2 * i & 0x03030303u) << 2 * j;
  for (int i = 0; i < 4; i++) memcpy(packing ? at + i * Q6_K_GROUP : file + 4 * i, &to[i], 4);
}

// d of a row in the tile.
void move_half(uint8_t* file, uint8_t* at, bool packing) { memcpy(packing ? at : file, packing ? file : at, 2); }

// Block number `index` of `blocks` of a row, between the file and lane `lane` of the tile. Order in the file:
//   Q8_0 d, 32 x int8   Q4_1 d, m, 16 B   Q4_0 d, 16 B   Q5_0 d, 32 high bits, 16 B
//   Q4_K d, dmin, 12 B of scales, 4 x 32 B   Q6_K 2 x 64 B nibbles, 2 x 32 B bit pairs, 16 scales, d
void move_block(int format, uint8_t* file, uint8_t* tile, int64_t index, int64_t blocks, int lane, bool packing) {
  switch (format) {
    case RL_Q8_0: {
      uint8_t* at = tile + q8_quants(index, blocks) + lane * 4;
      move_half(file, tile + q8_scales(index) + lane * 2, packing);
      for (int j = 0; j < 8; j++) move(file + 2 + 4 * j, at + 64 * j, packing, 0x80808080u);
      return;
    }
    case RL_Q4_1:
      tile += index * 320;
      move_half(file, tile + lane * 2, packing);
      move_half(file + 2, tile + 32 + lane * 2, packing);
      return move_sixteen(file + 4, tile + 64 + lane * 4, packing);
    case RL_Q4_0:
      move_half(file, tile + pair_scales(index, Q4_0_BODY) + lane * 2, packing);
      return move_sixteen(file + 2, tile + pair_body(index, blocks, Q4_0_BODY) + lane * 4, packing);
    case RL_Q5_0: {
      uint8_t* at = tile + pair_body(index, blocks, Q5_0_BODY) + lane * 4;
      move_half(file, tile + pair_scales(index, Q5_0_BODY) + lane * 2, packing);
      move_bits(file + 2, at, packing);
      return move_sixteen(file + 6, at + Q5_0_NIBBLES, packing);
    }
    case RL_Q4_K: {
      tile += index * Q4_K_BODY;
      uint8_t* at = tile + Q4_K_NIBBLES + lane * 4;
      move_half(file, tile + lane * 2, packing);
      move_half(file + 2, tile + 32 + lane * 2, packing);
      for (int i = 0; i < 3; i++) move(file + 4 + 4 * i, tile + Q4_K_SCALES + 64 * i + lane * 4, packing);
      for (int pair = 0; pair < 4; pair++)
        move_two_groups(file + 16 + 32 * pair, at + 2 * pair * Q4_K_GROUP, at + (2 * pair + 1) * Q4_K_GROUP, packing);
      return;
    }
    default: {
      uint8_t *body = tile + pair_body(index, blocks, Q6_K_BODY) + lane * 4, *at = body + Q6_K_NIBBLES;
      move_half(file + 208, tile + pair_scales(index, Q6_K_BODY) + lane * 2, packing);
      for (int i = 0; i < 4; i++) move(file + 192 + 4 * i, body + 64 * i, packing);
      for (int half = 0; half < 2; half++, at += 4 * Q6_K_GROUP) {  // groups 4 half + c: c and c + 2 share bytes
        for (int c = 0; c < 2; c++)
          move_two_groups(file + 64 * half + 32 * c, at + c * Q6_K_GROUP, at + (c + 2) * Q6_K_GROUP, packing);
        for (int part = 0; part < 2; part++)
          move_bit_pairs(file + 128 + 32 * half + 16 * part, at + Q6_K_HIGH + 64 * part, packing);
      }
    }
  }
}

// 32 columns of one row: bytes, or nibbles whose even columns are low.
void move_codes(int kind, uint8_t* file, uint8_t* at, bool packing) {
  if (!is_four(kind)) {
    for (int j = 0; j < 8; j++) move(file + 4 * j, at + 64 * j, packing, kind == RL_INT8 ? 0x80808080u : 0);
    return;
  }
  for (int i = 0; i < 4; i++) {  // file: columns 0 .. 7 in nibbles 0 .. 7; tile: nibble 2 b is column b, 2 b + 1 is 4 + b
    const uint32_t x = word(packing ? file + 4 * i : at + 64 * i);
    uint32_t y = 0;
    for (int n = 0; n < 8; n++) {
      const int inside = n < 4 ? 2 * n : 2 * (n - 4) + 1;
      y |= packing ? (x >> 4 * n & 15) << 4 * inside : (x >> 4 * inside & 15) << 4 * n;
    }
    memcpy(packing ? at + 64 * i : file + 4 * i, &y, 4);
  }
}

void move_bytes(uint8_t* file, uint8_t* at, int64_t bytes, bool packing) {
  memcpy(packing ? at : file, packing ? file : at, bytes);
}

void convert_affine(int32_t format, uint8_t* file, int64_t rows, int64_t columns, uint8_t* packed, bool packing) {
  const int kind = kind_of(format), block = block_bytes(format);
  const int64_t tile = tile_bytes(format, columns), parameters = tile_parameter_bytes(format, columns);
  const int64_t groups = group_count(format, columns), size = scale_bytes(format);
  const int64_t zeros = zero_bytes(format, groups) / RL_TILE_ROWS, blocks = columns / RL_GROUP;
  const int64_t row_bytes = blocks * block + groups * size + zeros;
  uint8_t* behind = packed + (rows + RL_TILE_ROWS - 1) / RL_TILE_ROWS * tile;
  for (int64_t row = 0; row < rows; row++) {
    const int64_t t = row / RL_TILE_ROWS, lane = row % RL_TILE_ROWS;
    uint8_t *at = packed + t * tile + lane * 4, *from = file + row * row_bytes;
    for (int64_t b = 0; b < blocks; b++)
      move_codes(kind, from + b * block, at + b * block * RL_TILE_ROWS, packing);
    uint8_t* own = behind + t * parameters;
    for (int64_t g = 0; g < groups; g++)
      move_bytes(from + blocks * block + g * size, own + (g * RL_TILE_ROWS + lane) * size, size, packing);
    own += groups * RL_TILE_ROWS * size;
    for (int64_t z = 0; z < zeros; z++)
      move_bytes(from + blocks * block + groups * size + z, own + z * RL_TILE_ROWS + lane, 1, packing);
  }
}

void convert_float8(int32_t format, uint8_t* file, int64_t rows, int64_t columns, uint8_t* packed, bool packing) {
  const int64_t tile = tile_bytes(format, columns), row_bytes = columns + (option_of(format) == UNIT_ROW ? 4 : 0);
  uint8_t* behind = packed + (rows + RL_TILE_ROWS - 1) / RL_TILE_ROWS * tile;
  for (int64_t row = 0; row < rows; row++) {
    uint8_t *from = file + row * row_bytes, *at = packed + row / RL_TILE_ROWS * tile + row % RL_TILE_ROWS * 4;
    for (int64_t k = 0; k < columns; k += 4)
      move_bytes(from + k, at + k * RL_TILE_ROWS, columns - k < 4 ? columns - k : 4, packing);
    if (option_of(format) == UNIT_ROW) move_bytes(from + columns, behind + row * 4, 4, packing);
  }
  if (option_of(format) != UNIT_ROW)
    move_bytes(file + rows * columns, behind, parameter_bytes(format, rows, columns), packing);
}

int32_t convert(int32_t format, uint8_t* file, int32_t rows, int32_t columns, uint8_t* packed, bool packing) {
  const int64_t bytes = rows > 0 && columns > 0 ? tile_bytes(format, columns) : -1;
  if (bytes < 0 || !file || !packed) return -1;
  const int64_t blocks = columns / columns_in_block(format), block = block_bytes(format);
  if (is_affine(kind_of(format)) || is_float8(kind_of(format))) {
    if (packing) memset(packed, 0, rl_packed_bytes(format, rows, columns));
    (is_affine(kind_of(format)) ? convert_affine : convert_float8)(format, file, rows, columns, packed, packing);
    return 0;
  }
  for (int64_t row = 0; row < rows; row += RL_TILE_ROWS) {
    uint8_t* tile = packed + row / RL_TILE_ROWS * bytes;
    const int count = rows - row < RL_TILE_ROWS ? static_cast<int>(rows - row) : RL_TILE_ROWS;
    if (format == RL_F32) {
      plain_tile<uint32_t>(file + row * columns * 4, tile, count, columns, 1, packing);
    } else if (format == RL_F16) {
      plain_tile<uint16_t>(file + row * columns * 2, tile, count, columns, 1, packing);
    } else if (format == RL_BF16) {
      plain_tile<uint16_t>(file + row * columns * 2, tile, count, columns, 2, packing);
    } else {
      if (packing && count < RL_TILE_ROWS) memset(tile, 0, bytes);
      for (int64_t b = 0; b < blocks; b++)
        for (int i = 0; i < count; i++)
          move_block(format, file + ((row + i) * blocks + b) * block, tile, b, blocks, i, packing);
    }
  }
  return 0;
}

}  // namespace
}  // namespace ridgeline

using namespace ridgeline;

int64_t rl_packed_bytes(int32_t format, int32_t rows, int32_t columns) {
  if (rows <= 0 || columns <= 0) return -1;
  const int64_t bytes = tile_bytes(format, columns);
  if (bytes < 0) return -1;
  return round_up(rows, RL_TILE_ROWS) / RL_TILE_ROWS * bytes + parameter_bytes(format, rows, columns);
}

int32_t rl_pack(int32_t format, const void* source, int32_t rows, int32_t columns, void* packed) {
  uint8_t* file = static_cast<uint8_t*>(const_cast<void*>(source));  // only read when packing
  return convert(format, file, rows, columns, static_cast<uint8_t*>(packed), true);
}

int32_t rl_unpack(int32_t format, const void* packed, int32_t rows, int32_t columns, void* source) {
  uint8_t* tiles = static_cast<uint8_t*>(const_cast<void*>(packed));  // only read when unpacking
  return convert(format, static_cast<uint8_t*>(source), rows, columns, tiles, false);
}
