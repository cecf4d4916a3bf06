// combine: a token's expert outputs, weighted and summed in the order they were chosen: a fixed order, whatever else runs.
#include "quantise.h"
#include "routing.h"

namespace ridgeline::RL_ISA {

void combine(Worker& worker, const Step& step, const RlInstr& in) {
  const int64_t width = in.width_out;
  int64_t begin, end;
  share(step.batch->tokens, worker, begin, end);
  for (int64_t token = begin; token < end; token++) {
    const float* routing = routing_row(step, in, token);
    float* out = floats(step, in.out) + token * width;
    for (int j = 0; j < in.chosen; j++) {
      const F weight = splat(routing[in.chosen + j]);
      const float* x = floats(step, in.in) + static_cast<int64_t>(routing[2 * in.chosen + j]) * width;
      for (int64_t i = 0; i < width; i += LANES) {
        const int n = width - i < LANES ? static_cast<int>(width - i) : LANES;
        const F value = weight * (n < LANES ? load_part(x + i, n) : load(x + i));
        const F total = j == 0 ? value : value + (n < LANES ? load_part(out + i, n) : load(out + i));
        n < LANES ? store_part(out + i, total, n) : store(out + i, total);
      }
    }
    if (in.in3 >= 0) {
      const float* shared = floats(step, in.in3) + token * width;
      F factor = splat(1.0f);
      if (in.in4 >= 0) factor = splat(1.0f) / (splat(1.0f) + exp(splat(-floats(step, in.in4)[token])));
      for (int64_t i = 0; i < width; i += LANES) {
        const int n = width - i < LANES ? static_cast<int>(width - i) : LANES;
        if (n < LANES)
          store_part(out + i, fma(factor, load_part(shared + i, n), load_part(out + i, n)), n);
        else
          store(out + i, fma(factor, load(shared + i), load(out + i)));
      }
    }
    finish_row(step, in, token, out);
  }
}

}  // namespace ridgeline::RL_ISA
