// embed: rows read out of the packed tiles (a tied table is stored once). Scalar: a few hundred values a token.
#include "quantise.h"

namespace ridgeline::RL_ISA {
namespace {

// Element i of a group's nibbles (pack.cpp).
RL_INLINE float nibble(const uint8_t* at, int i) {
  return static_cast<float>(at[i / 8 * 64 + i % 4] >> (i % 8 / 4 * 4) & 15);
}

void read_pairs(const RlWeight& weight, const uint8_t* tile, int64_t lane, float scale, float* out) {
  const bool five = weight.format == RL_Q5_0;
  const int body = five ? Q5_0_BODY : Q4_0_BODY;
  for (int64_t k = 0; k < weight.columns; k += RL_GROUP) {
    const float d = half_to_float(reinterpret_cast<const uint16_t*>(tile + pair_scales(k / RL_GROUP, body))[lane]);
    const uint8_t* at = tile + pair_body(k / RL_GROUP, weight.columns / RL_GROUP, body) + lane * 4;
    for (int i = 0; i < RL_GROUP; i++) {
      const float q = five ? nibble(at + Q5_0_NIBBLES, i) + (at[i % 4] >> (i / 4) & 1) * 16 - 16 : nibble(at, i) - 8;
      out[k + i] = d * q * scale;
    }
  }
}

void read_q4_k(const RlWeight& weight, const uint8_t* tile, int64_t lane, float scale, float* out) {
  for (int64_t k = 0; k < weight.columns; k += RL_GROUP) {
    const uint8_t* block = tile + k / RL_SUPER * Q4_K_BODY;
    const int group = static_cast<int>(k % RL_SUPER / RL_GROUP), i = group & 3;
    const uint8_t *low = block + Q4_K_SCALES + lane * 4, *high = low + 64, *rest = low + 128;
    const int s = group < 4 ? low[i] & 63 : (rest[i] & 15) | (low[i] >> 2 & 0x30);
    const int m = group < 4 ? high[i] & 63 : rest[i] >> 4 | (high[i] >> 2 & 0x30);
    const float d = half_to_float(reinterpret_cast<const uint16_t*>(block)[lane]) * s;
    const float least = half_to_float(reinterpret_cast<const uint16_t*>(block)[16 + lane]) * m;
    const uint8_t* at = block + Q4_K_NIBBLES + group * Q4_K_GROUP + lane * 4;
    for (int e = 0; e < RL_GROUP; e++) out[k + e] = (d * nibble(at, e) - least) * scale;
  }
}

void read_q6_k(const RlWeight& weight, const uint8_t* tile, int64_t lane, float scale, float* out) {
  for (int64_t k = 0; k < weight.columns; k += RL_GROUP) {
    const int64_t block = k / RL_SUPER, group = k % RL_SUPER / RL_GROUP;
    const float d = half_to_float(reinterpret_cast<const uint16_t*>(tile + pair_scales(block, Q6_K_BODY))[lane]);
    const uint8_t* body = tile + pair_body(block, weight.columns / RL_SUPER, Q6_K_BODY) + lane * 4;
    const uint8_t* at = body + Q6_K_NIBBLES + group * Q6_K_GROUP;
    for (int e = 0; e < RL_GROUP; e++) {
      const float s = d * static_cast<int8_t>(body[group / 2 * 64 + group % 2 * 2 + e / 16]);
      const int pair = at[Q6_K_HIGH + e / 16 * 64 + e % 4] >> (e % 16 / 4 * 2) & 3;
      out[k + e] = s * (nibble(at, e) + pair * 16 - 32) * scale;
    }
  }
}

// What stands behind all tiles.
RL_INLINE const uint8_t* behind(const RlWeight& weight) {
  return static_cast<const uint8_t*>(weight.data) +
         (weight.rows + RL_TILE_ROWS - 1) / RL_TILE_ROWS * tile_bytes(weight.format, weight.columns);
}

void read_affine(const RlWeight& weight, const uint8_t* tile, int64_t id, float scale, float* out) {
  const int format = weight.format, kind = kind_of(format);
  const int64_t columns = weight.columns, group = group_columns(format, columns), groups = group_count(format, columns);
  const int64_t lane = id % RL_TILE_ROWS, size = scale_bytes(format);
  const uint8_t* scales = behind(weight) + id / RL_TILE_ROWS * tile_parameter_bytes(format, columns);
  const uint8_t* zeros = scales + groups * RL_TILE_ROWS * size;
  for (int64_t k = 0; k < columns; k += RL_GROUP) {
    const int64_t g = k / group;
    const uint8_t* at = scales + (g * RL_TILE_ROWS + lane) * size;
    const uint16_t half = *reinterpret_cast<const uint16_t*>(at);
    const float d = option_of(format) == SCALE_F16    ? half_to_float(half)
                    : option_of(format) == SCALE_BF16 ? bf16_to_float(half)
                                                      : *reinterpret_cast<const float*>(at);
    int zero = is_four(kind) ? 8 : 128;
    if (kind == RL_INT8_ZERO) zero = zeros[g * RL_TILE_ROWS + lane];
    if (kind == RL_INT4_ZERO) zero = zeros[g / 2 * RL_TILE_ROWS + lane] >> (g % 2 * 4) & 15;
    const uint8_t* q = tile + k * (is_four(kind) ? 8 : 16) + lane * 4;
    for (int i = 0; i < RL_GROUP; i++) {
      const float code = is_four(kind) ? nibble(q, i) : q[i / 4 * 64 + i % 4];
      out[k + i] = d * (code - zero) * scale;
    }
  }
}

void read_float8(const RlWeight& weight, const uint8_t* tile, int64_t id, float scale, float* out) {
  const float* scales = reinterpret_cast<const float*>(behind(weight));
  const int64_t across = (weight.columns + RL_EDGE - 1) / RL_EDGE;
  for (int64_t k = 0; k < weight.columns; k++) {
    const int64_t at = option_of(weight.format) == UNIT_TENSOR ? 0
                       : option_of(weight.format) == UNIT_ROW  ? id
                                                               : id / RL_EDGE * across + k / RL_EDGE;
    const uint8_t code = tile[k / 4 * 64 + id % RL_TILE_ROWS * 4 + k % 4];
    const bool is_e4m3 = kind_of(weight.format) == RL_E4M3;
    const uint32_t word = (code & 128u) << 24 | (code & 127u) << (is_e4m3 ? 20 : 21);
    float value;
    memcpy(&value, &word, 4);
    out[k] = value * (is_e4m3 ? 0x1p120f : 0x1p112f) * scales[at] * scale;
  }
}

void read_row(const RlWeight& weight, int64_t id, float scale, float* out) {
  const int64_t columns = weight.columns, lane = id % RL_TILE_ROWS;
  const uint8_t* tile =
      static_cast<const uint8_t*>(weight.data) + id / RL_TILE_ROWS * tile_bytes(weight.format, columns);
  const float* words = reinterpret_cast<const float*>(tile);
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(tile);
  switch (kind_of(weight.format)) {
    case RL_F32:
      for (int64_t k = 0; k < columns; k++) out[k] = words[k * 16 + lane] * scale;
      return;
    case RL_F16:
      for (int64_t k = 0; k < columns; k++) out[k] = half_to_float(halves[k * 16 + lane]) * scale;
      return;
    case RL_BF16:
      for (int64_t k = 0; k < columns; k++) out[k] = bf16_to_float(halves[k / 2 * 32 + lane * 2 + k % 2]) * scale;
      return;
    case RL_Q8_0:
      for (int64_t k = 0; k < columns; k += RL_GROUP) {
        const float d = half_to_float(reinterpret_cast<const uint16_t*>(tile + q8_scales(k / RL_GROUP))[lane]);
        const uint8_t* q = tile + q8_quants(k / RL_GROUP, columns / RL_GROUP) + lane * 4;
        for (int i = 0; i < RL_GROUP; i++)
          out[k + i] = d * static_cast<float>(static_cast<int>(q[i / 4 * 64 + i % 4]) - 128) * scale;
      }
      return;
    case RL_Q4_1:
      for (int64_t k = 0; k < columns; k += RL_GROUP, tile += 320) {
        const float d = half_to_float(reinterpret_cast<const uint16_t*>(tile)[lane]);
        const float m = half_to_float(reinterpret_cast<const uint16_t*>(tile)[16 + lane]);
        for (int i = 0; i < RL_GROUP; i++) out[k + i] = (d * nibble(tile + 64 + lane * 4, i) + m) * scale;
      }
      return;
    case RL_Q4_0:
    case RL_Q5_0: return read_pairs(weight, tile, lane, scale, out);
    case RL_Q4_K: return read_q4_k(weight, tile, lane, scale, out);
    case RL_Q6_K: return read_q6_k(weight, tile, lane, scale, out);
    case RL_INT8: case RL_INT8_ZERO: case RL_INT4: case RL_INT4_ZERO: return read_affine(weight, tile, id, scale, out);
    case RL_E4M3: case RL_E5M2: return read_float8(weight, tile, id, scale, out);
  }
}

}  // namespace

void embed(Worker& worker, const Step& step, const RlInstr& in) {
  int64_t begin, end;
  share(step.batch->tokens, worker, begin, end);
  for (int64_t row = begin; row < end; row++) {
    float* out = floats(step, in.out) + row * in.width_out;
    read_row(in.weight[0], step.batch->token_ids[row], in.scale, out);
    finish_row(step, in, row, out);
  }
}

}  // namespace ridgeline::RL_ISA
