// The C ABI of Ridgeline's CPU kernels: one call runs one step (a tape) over a flattened batch.
// Owner of these structs on the Python side: kernels/native.py. Change both and RL_ABI_VERSION together.
#pragma once
#include <stdint.h>

#define RL_ABI_VERSION 11
#if defined(__GNUC__)
#define RL_API __attribute__((visibility("default")))
#else
#define RL_API
#endif
#define RL_BLOCK_TOKENS 16    // tokens in a KV page
#define RL_TILE_ROWS 16       // weight rows interleaved in one packed tile
#define RL_STATE_ALIGNMENT 64  // bytes: parts of a recurrent layer's state begin on cache lines
#define RL_GROUP 32           // elements that share a scale (weights and quantised activations)
#define RL_MAX_EXPERTS 1024  // of one layer
#define RL_SPLIT_TOKENS 256   // attention splits at absolute multiples of this many keys; merged in order

#ifdef __cplusplus
extern "C" {
#endif

enum RlIsa { RL_PLAIN = 0, RL_AVX2 = 1, RL_AVX512 = 2, RL_AVX512_BF16 = 3 };
// A format is a kind in its low byte; the kinds from INT8 to E5M2 carry options above it.
//   INT8 .. INT4_ZERO: codes under a scale for each group of columns, ZERO: and an integer zero; bits 8-11: scale f16, bf16
//   or f32; from bit 12: columns of a group / 32, 0 for the whole row. E4M3, E5M2: bits 8-11: a scale for the matrix, each
//   row, or each 128 x 128.
enum RlFormat {
  RL_F32 = 0, RL_BF16 = 1, RL_Q8_0 = 2, RL_Q4_1 = 3, RL_Q4_0 = 4, RL_Q5_0 = 5, RL_Q4_K = 6, RL_Q6_K = 7,
  RL_INT8 = 8, RL_INT8_ZERO = 9, RL_INT4 = 10, RL_INT4_ZERO = 11, RL_E4M3 = 12, RL_E5M2 = 13,
  RL_F16 = 14,
  RL_FORMAT_END
};
// RL_KV_CLOSED: above its low byte, bits 8-15: tokens of a block / 16, bits 16-23: the first tokens that stay in bf16.
enum RlStorage { RL_KV_F32 = 0, RL_KV_BF16 = 1, RL_KV_INT8 = 2, RL_KV_INT4 = 3, RL_KV_CLOSED = 4 };
enum RlOp {
  RL_EMBED = 1,       // out[t] = weight[0] row token_ids[t] * scale
  RL_NORM = 2,        // out = in * rsqrt(mean(in^2) + eps) * gain; gain = weight[0] (f32 vector, unpacked)
  RL_LINEAR = 3,      // out[:, part] = in . weight[part]^T (+ bias) ; + in2 (residual, width_out) when in2 >= 0
  RL_ROPE = 4,        // rotate q and k heads of in/out (in place) by position
  RL_ATTEND = 5,      // append k, v of `in` to the pool, then out[t] = attention of q over its sequence
  RL_ACTIVATION = 6,  // out = act(in[:, :w]) * in[:, w:], w = width_out
  RL_ADD = 7,         // out = in + in2; without in2 a copy (out may be in): for a quantised copy of what a call-out wrote
  RL_GATHER = 8,      // out[r] = in[logit_token[r]]
  RL_SAMPLE = 9,      // choose or score a token per logit row of `in`
  RL_HEAD_NORM = 10,  // norm of each q head (gain weight[0]) and k head (weight[1], f32 vectors) of a qkv row; v as it is
  RL_ROUTE = 11,      // out[t] = ids, weights and places of the `chosen` experts of token t (routing.h); in = router logits
  RL_DISPATCH = 12,   // out = rows of `in` at their places: [tokens * chosen][width_in]; in2 = routing
  RL_EXPERTS = 13,    // out = gated MLP of each expert over its rows of `in`; in2 = routing; weight = gate, up, down
  RL_COMBINE = 14,    // out[t] = sum of weight * in[place] (+ in3, times sigmoid(in4) when there); in2 = routing
  // Recurrent layers (ops/recurrent.py): kv_heads is the number of groups; a wide row is [gate | x, B, C | a step a head]
  RL_CONV = 15,       // out = silu(causal convolution of x, B, C of `in`, wide, with weight[0] = f32 [taps][channels] (+ bias))
  RL_SCAN = 16,       // out = selective scan of `in` (x, B, C) with the steps of in2 (wide); weight: decay, bias, skip [heads]
  RL_GATED_NORM = 17, // out = norm, group by group, of in * silu(gate of in2, wide), gain weight[0]
  RL_OP_END
};
enum RlActivation { RL_SILU = 0, RL_GELU_TANH = 1 };
enum RlFlag { RL_ROPE_INTERLEAVED = 1, RL_ROUTE_SIGMOID = 2, RL_ROUTE_RENORMALISE = 4 };

// Packed weight (see pack.cpp for the tile layouts). rows and columns are the logical ones. Of RL_EXPERTS: `experts`
// packed matrices of rows x columns one after another; bytes is their sum.
typedef struct {
  const void* data;
  const float* bias;  // [rows] or NULL
  int64_t bytes;
  int32_t format, rows, columns, reserved;
} RlWeight;

// One instruction. Offsets are bytes into the arena; -1: absent. A buffer holds [rows][width] f32, rows = tokens of
// the batch, or logit rows when per_logit_row. A quantised buffer takes rows * round_up(width/32 * 88, 64) bytes;
// its layout is the kernels' own and differs between instruction sets (quantise.h).
typedef struct {
  int32_t op, line;          // line: which entry of line_ns is billed
  int32_t per_logit_row, parts, flags, activation;
  int32_t width_in, width_out;
  int64_t in, in2, out;      // f32 buffers
  int64_t in_quant;          // quantised copy of `in`, read by integer formats
  int64_t out_quant;         // also write a quantised copy of `out` here
  int32_t layer, heads, kv_heads, head_dim;  // layer: its place in the pool
  int32_t rotary_dim, window;   // window 0: all keys; w > 0: the last w keys and the first `sinks`
  int32_t group, sinks;         // group: which pool, block table and slots; sinks need the rope tables too (attend.cpp)
  float eps, scale;             // scale: embedding multiplier / softmax scale
  int64_t in3, in4;             // RL_COMBINE: shared expert's output, its gate's logit
  int64_t work;                 // RL_EXPERTS: [tokens * chosen] rows of 3 * hidden f32 (two buffers), and a quantised buffer
  int32_t experts, chosen;      // of RL_ROUTE to RL_COMBINE; a routing row has 3 * chosen floats
  int32_t groups, groups_kept;  // RL_ROUTE: experts in equal groups, of which some can be chosen from; 1: all
  const float* rope_cos;        // [positions][rotary_dim/2]
  const float* rope_sin;
  RlWeight weight[3];
  int32_t states, taps;         // recurrent layers: state size of a head; inputs of a convolution
  float outlier;                // quantised copies: a group keeps 15 bits when its peak exceeds this times the row's (in
  int32_t recent;               // RL_ATTEND: the head's) mean magnitude, else 8; 0: always, infinity: never
                                // recent: group of the bf16 pages of what RL_KV_CLOSED has not closed yet
} RlInstr;

// The paged KV pool. Page address: base + block*block_stride + layer*layer_stride + kv_head*head_stride
// holds the K page, then (page_bytes later) the V page.
// A kept vector is a row of bytes, K and V alike (pages.h):
//   RL_KV_F32: f32 [head_dim]    RL_KV_INT8: int8 [head_dim], f32 scale: x = q * scale
//   RL_KV_BF16: bf16 [head_dim]  RL_KV_INT4: 4 bits [head_dim] (low half of a byte first), bf16 scale, bf16 low: x = q * scale + low
// V page: [16 tokens] rows. K page: the same rows turned round in units of 4 bytes, [row bytes / 4][16 tokens][4].
// RL_KV_CLOSED holds whole blocks of tokens (attend_closed.h). Positions only, no trees, no mass.
typedef struct {
  uint8_t* base;
  int64_t block_stride, layer_stride, head_stride, page_bytes;
  int32_t storage, blocks;
  float* mass;  // [blocks][layers][kv_heads][16 tokens] attention mass a kept token has got so far (C10); NULL: not kept
} RlPool;

// Sampling of one logit row; semantics in ops/sample.py.
typedef struct {
  uint64_t seed;
  int32_t choice, position;
  int32_t target;        // >= 0: score this token, choose nothing
  int32_t logprobs;      // -1: none; k: chosen token and the k most likely (k <= 20)
  float temperature, top_p, min_p;
  int32_t top_k;
  float repetition, presence, frequency;
  int32_t history_begin, history_end;  // into history_ids / history_counts: distinct tokens seen
  int32_t bias_begin, bias_end;        // into bias_ids / bias_values
  int32_t law;                         // k > 0: also write what the token was drawn from to laws[k - 1]; 0: not wanted
  int32_t mask;                        // k > 0: only tokens whose bit is set in masks[k - 1] may be chosen; 0: all may
} RlSampling;

typedef struct {
  int32_t tokens, sequences, logit_rows, table_stride;
  const int32_t* token_ids;     // [tokens]
  const int32_t* positions;     // [tokens], absolute
  const int32_t* sequence_of;   // [tokens]
  const int32_t* first_token;   // [sequences + 1]
  const int32_t* block_table;   // [groups][sequences][table_stride]; -1: a block whose tokens are never read again
  const int32_t* slots;         // [groups][tokens] where k and v go, neighbours in a sequence; NULL: equal to positions
  const uint64_t* tree;         // [tokens] bit i: sees token i of its sequence in this batch; 0: all before it; NULL: chains.
                                // Ignored in sequences with more than 64 tokens. A token's position is that of the first
                                // plus its depth, the number of its other bits.
  const int32_t* logit_token;   // [logit_rows] token index
  const RlSampling* sampling;   // [logit_rows]
  const int32_t* history_ids;
  const int32_t* history_counts;  // occurrences in the output; 0: only in the prompt
  const int32_t* bias_ids;
  const float* bias_values;
  int32_t* sampled;             // [logit_rows]
  float* logprob;               // [logit_rows] of the sampled or scored token (untouched when logprobs == -1)
  int32_t* rank;                // [logit_rows]
  int32_t* top_ids;             // [logit_rows][20]
  float* top_logprobs;          // [logit_rows][20]
  float* laws;                  // [laws wanted][vocabulary], sums to 1; may be NULL when none is wanted
  int64_t* line_ns;             // [lines] written (not accumulated), may be NULL
  int32_t* line_experts;        // [lines] distinct experts chosen, written by RL_ROUTE, may be NULL
  // Recurrent state, NULL without: slot s, layer i at state + s*slot_stride + i*state_layer_stride, f32. First the inputs
  // [taps-1][channels], oldest first; then, rounded up to RL_STATE_ALIGNMENT, states [heads][states][head_dim]. Read as
  // zeros by a token at position 0.
  uint8_t* state;
  int64_t slot_stride, state_layer_stride, state_slots;
  const int32_t* state_slot;    // [sequences], each its own
  const uint32_t* masks;        // [masks][(vocabulary + 31) / 32], token t at bit t % 32; may be NULL when none is wanted
  int32_t corun, turns_room;    // RL_ATTEND: corun: items of many and of few rows in turns (attend.cpp); 0: as they come
  int32_t* turns;               // [threads][turns_room] what the turns went to: item i of many rows i, of few -1 - i; for
                                // tests, may be NULL
} RlBatch;

typedef struct RlTeam RlTeam;

RL_API int32_t rl_abi_version(void);
RL_API int32_t rl_isa_available(void);              // bit mask: 1 << RlIsa that this machine runs
RL_API int32_t rl_isa_set(int32_t isa);             // process-wide; 0 ok, -1 not available
RL_API int32_t rl_isa_get(void);
RL_API RlTeam* rl_team_new(int32_t threads);        // persistent; the caller of rl_execute is thread 0
RL_API void    rl_team_free(RlTeam* team);
RL_API int64_t rl_execute(RlTeam* team, const RlInstr* tape, int32_t count, uint8_t* arena,
                   uint8_t* scratch, int64_t scratch_bytes, const RlPool* pools, int32_t pool_count,
                   const RlBatch* batch);  // 0 ok, < 0 bad tape
RL_API int64_t rl_scratch_bytes(int32_t threads, int32_t max_tokens, int32_t max_positions, int32_t heads, int32_t head_dim, int32_t vocabulary);
RL_API int64_t rl_packed_bytes(int32_t format, int32_t rows, int32_t columns);
RL_API int32_t rl_pack(int32_t format, const void* source, int32_t rows, int32_t columns, void* packed);     // source: file order
RL_API int32_t rl_unpack(int32_t format, const void* packed, int32_t rows, int32_t columns, void* source);   // exact inverse
// ceilings, on the team: seconds for one pass
RL_API double  rl_measure_read(RlTeam* team, const void* data, int64_t bytes, int32_t threads);
RL_API double  rl_measure_flops(RlTeam* team, int32_t kind, int64_t iterations, int32_t threads, double* operations); // kind: 0 f32 FMA, 1 int8 dot, 2 bf16 dot
RL_API double  rl_measure_barrier(RlTeam* team, int64_t iterations);

#ifdef __cplusplus
}
#endif
