// Which bodies run the stages of attention (attend_rows.h) over a storage's pages, by number of rows.
#pragma once
#include "attend_closed.h"
#if RL_LEVEL == 2
#include "attend_integers.h"
#endif

namespace ridgeline {
namespace {

typedef void (*Group)(Item&, int, const Pages&, int, int);

// What runs 1 .. GROUP_ROWS rows of a storage.
template <class S>
struct Groups {
  static constexpr int LAST = GROUP_ROWS, FIFTH = GROUP_ROWS > 4 ? 5 : GROUP_ROWS;  // beyond GROUP_ROWS: never asked for
  static constexpr Group score[6] = {score_group<1, S>, score_group<2, S>, score_group<3, S>,
                                     score_group<4, S>, score_group<FIFTH, S>, score_group<LAST, S>};
  static constexpr Group weigh[6] = {weigh_group<1, S>, weigh_group<2, S>, weigh_group<3, S>,
                                     weigh_group<4, S>, weigh_group<FIFTH, S>, weigh_group<LAST, S>};
  static constexpr Group again[6] = {weigh_again<1, S>, weigh_again<2, S>, weigh_again<3, S>,
                                     weigh_again<4, S>, weigh_again<FIFTH, S>, weigh_again<LAST, S>};
  static constexpr Group soften[6] = {soften_group<1>, soften_group<2>, soften_group<3>,
                                      soften_group<4>, soften_group<FIFTH>, soften_group<LAST>};
};

#if RL_LEVEL == 2
template <class S>
struct WholeGroups {
  static constexpr Group score[6] = {score_group<1, S>, score_group<2, S>, score_group<3, S>,
                                     score_group<4, S>, score_group<5, S>, score_group<6, S>};
  static constexpr Group soften[6] = {soften_whole<1, S>, soften_whole<2, S>, soften_whole<3, S>,
                                      soften_whole<4, S>, soften_whole<5, S>, soften_whole<6, S>};
  static constexpr Group weigh[6] = {weigh_whole_group<1, S>, weigh_whole_group<2, S>, weigh_whole_group<3, S>,
                                     weigh_whole_group<4, S>, weigh_whole_group<5, S>, weigh_whole_group<6, S>};
};
#endif

struct Stages {
  const Group *score, *soften, *weigh;
};

struct Bodies {
  Stages step, wide;
  const Group* again;
  void (*widen)(const Pages&, int, WideStep&, Pages&);
  void (*round)(Query&, int, int, int);  // a row of a query into what `score` reads; null: floats as they are
};

template <class S>
constexpr Stages STAGES = {Groups<S>::score, Groups<S>::soften, Groups<S>::weigh};
template <class S>
constexpr Bodies BODIES = {STAGES<S>, STAGES<WidePages<S>>, Groups<S>::again, widen<S>, nullptr};
template <>
constexpr Bodies BODIES<F32Pages> = {STAGES<F32Pages>, {}, Groups<F32Pages>::again, nullptr, nullptr};

#if RL_LEVEL == 2
template <class S>
constexpr Stages WHOLE_STAGES = {WholeGroups<S>::score, WholeGroups<S>::soften, WholeGroups<S>::weigh};
constexpr Bodies WHOLE_BODIES = {WHOLE_STAGES<WholePages>, WHOLE_STAGES<WideWholePages>, nullptr, widen_whole, round_query};
#endif

struct ClosedGroups {
  static constexpr int LAST = GROUP_ROWS, FIFTH = GROUP_ROWS > 4 ? 5 : GROUP_ROWS;
  static constexpr Group score[6] = {score_closed<1>, score_closed<2>,     score_closed<3>,
                                     score_closed<4>, score_closed<FIFTH>, score_closed<LAST>};
  static constexpr Group weigh[6] = {weigh_closed<1>, weigh_closed<2>,     weigh_closed<3>,
                                     weigh_closed<4>, weigh_closed<FIFTH>, weigh_closed<LAST>};
};
constexpr Bodies CLOSED_BODIES = {{ClosedGroups::score, Groups<Bf16Pages>::soften, ClosedGroups::weigh}, {}, nullptr, nullptr,
                                  nullptr};

RL_INLINE const Bodies& bodies_of(int storage, [[maybe_unused]] bool has_mass) {
#if RL_LEVEL == 2
  if (storage == RL_KV_INT8 && !has_mass) return WHOLE_BODIES;
#endif
  if (is_closed(storage)) return CLOSED_BODIES;
  switch (storage) {
    case RL_KV_F32: return BODIES<F32Pages>;
    case RL_KV_BF16: return BODIES<Bf16Pages>;
    case RL_KV_INT8: return BODIES<Int8Pages>;
    default: return BODIES<Int4Pages>;
  }
}

}  // namespace
}  // namespace ridgeline
