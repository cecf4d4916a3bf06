// gather: keep only the rows whose logits are wanted.
#include "quantise.h"

namespace ridgeline::RL_ISA {

void gather(Worker& worker, const Step& step, const RlInstr& in) {
  const int64_t width = in.width_out;
  int64_t begin, end;
  share(step.batch->logit_rows, worker, begin, end);
  for (int64_t row = begin; row < end; row++) {
    float* out = floats(step, in.out) + row * width;
    memcpy(out, floats(step, in.in) + step.batch->logit_token[row] * width, width * 4);
    finish_row(step, in, row, out);
  }
}

}  // namespace ridgeline::RL_ISA
