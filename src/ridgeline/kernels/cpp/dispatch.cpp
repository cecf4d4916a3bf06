// dispatch: each token's row copied to its places among the rows sorted by expert, and quantised there in panels that begin
// with each expert's rows, as its matrices will read them.
#include "quantise.h"
#include "routing.h"

namespace ridgeline::RL_ISA {

void dispatch(Worker& worker, const Step& step, const RlInstr& in) {
  int32_t first[RL_MAX_EXPERTS + 1];
  if (in.out_quant >= 0) segments(step, in, first);
  const int64_t width = in.width_in;
  int64_t begin, end;
  share(step.batch->tokens, worker, begin, end);
  for (int64_t token = begin; token < end; token++) {
    const float* x = floats(step, in.in) + token * width;
    const float* routing = routing_row(step, in, token);
    for (int j = 0; j < in.chosen; j++) {
      const int64_t place = static_cast<int64_t>(routing[2 * in.chosen + j]);
      memcpy(floats(step, in.out) + place * width, x, width * 4);
      if (in.out_quant < 0) continue;
      const int expert = static_cast<int>(routing[j]);
      quantise(x, 0, width, segment_row(step, in.out_quant, width, place, first[expert], first[expert + 1]), in.outlier);
    }
  }
}

}  // namespace ridgeline::RL_ISA
