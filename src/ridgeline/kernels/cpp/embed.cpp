// embed: rows read out of the packed tiles (a tied table is stored once). Scalar: a few hundred values a token.
#include "quantise.h"

namespace ridgeline::RL_ISA {
namespace {

void read_row(const RlWeight& weight, int64_t id, float scale, float* out) {
  const int64_t columns = weight.columns, lane = id % RL_TILE_ROWS;
  const uint8_t* tile =
      static_cast<const uint8_t*>(weight.data) + id / RL_TILE_ROWS * tile_bytes(weight.format, columns);
  const float* words = reinterpret_cast<const float*>(tile);
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(tile);
  switch (weight.format) {
    case RL_F32:
      for (int64_t k = 0; k < columns; k++) out[k] = words[k * 16 + lane] * scale;
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
        const uint8_t* q = tile + 64 + lane * 4;
        for (int i = 0; i < RL_GROUP; i++)
          out[k + i] = (d * static_cast<float>(q[i / 8 * 64 + i % 4] >> (i % 8 / 4 * 4) & 15) + m) * scale;
      }
      return;
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
