// add: out = in + in2, one row by one thread. Usually the residual is added by the linear before it instead.
#include "quantise.h"

namespace ridgeline::RL_ISA {

void add(Worker& worker, const Step& step, const RlInstr& in) {
  const int64_t width = in.width_out;
  int64_t begin, end;
  share(row_count(step, in), worker, begin, end);
  for (int64_t row = begin; row < end; row++) {
    const float* a = floats(step, in.in) + row * width;
    const float* b = in.in2 >= 0 ? floats(step, in.in2) + row * width : nullptr;
    float* out = floats(step, in.out) + row * width;
    if (!b) {
      if (out != a) memcpy(out, a, width * 4);
      finish_row(step, in, row, out);
      continue;
    }
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) store(out + i, load(a + i) + load(b + i));
    for (; i < width; i++) out[i] = a[i] + b[i];
    finish_row(step, in, row, out);
  }
}

}  // namespace ridgeline::RL_ISA
