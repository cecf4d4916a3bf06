// The table of bodies of one instruction set.
#include "kernels.h"

namespace ridgeline {
namespace RL_ISA {

#define RL_BODY(name) void name(Worker&, const Step&, const RlInstr&);
RL_BODY(embed) RL_BODY(norm) RL_BODY(linear) RL_BODY(rope) RL_BODY(attend)
RL_BODY(activation) RL_BODY(add) RL_BODY(gather) RL_BODY(sample) RL_BODY(head_norm)
RL_BODY(route) RL_BODY(dispatch) RL_BODY(experts) RL_BODY(combine)
RL_BODY(conv) RL_BODY(scan) RL_BODY(gated_norm)
double read(const void*, int64_t);
double arithmetic(int, int64_t, double*);

}  // namespace RL_ISA

#define RL_JOIN2(a, b) a##b
#define RL_JOIN(a, b) RL_JOIN2(a, b)
extern const Kernels RL_JOIN(kernels_, RL_ISA);
const Kernels RL_JOIN(kernels_, RL_ISA) = {
    {nullptr, RL_ISA::embed, RL_ISA::norm, RL_ISA::linear, RL_ISA::rope, RL_ISA::attend, RL_ISA::activation, RL_ISA::add,
     RL_ISA::gather, RL_ISA::sample, RL_ISA::head_norm, RL_ISA::route, RL_ISA::dispatch, RL_ISA::experts, RL_ISA::combine,
     RL_ISA::conv, RL_ISA::scan, RL_ISA::gated_norm},
    RL_ISA::read,
    RL_ISA::arithmetic};

}  // namespace ridgeline
