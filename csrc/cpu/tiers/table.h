// SPDX-License-Identifier: BSD-3-Clause
//
// The Engine of a tier, made of the functions and constants that a tier's source file has defined before it
// includes this as its last line.

#define MASKATTN_STRINGIFY_(x) #x
#define MASKATTN_STRINGIFY(x) MASKATTN_STRINGIFY_(x)
#define MASKATTN_CONCAT_(a, b) a##b
#define MASKATTN_CONCAT(a, b) MASKATTN_CONCAT_(a, b)

namespace maskattn {

extern const Engine MASKATTN_CONCAT(engine_, MASKATTN_TIER);
const Engine MASKATTN_CONCAT(engine_, MASKATTN_TIER) = {
    .name = MASKATTN_STRINGIFY(MASKATTN_TIER),
    .forward_queries = kForwardQ,
    .backward_queries = kBackwardQ,
    .query_step = kStepQ,
    .pack_block = kBlockK,
    .packed_keys_bytes = packed_keys_bytes,
    .pack_keys = pack_keys,
    .forward_scratch_bytes = forward_scratch_bytes,
    .forward_block = forward_block,
    .few_row_floats = few_row_floats,
    .few_scratch_bytes = few_scratch_bytes,
    .attend_few = attend_few,
    .combine_few = combine_few,
    .packed_queries_bytes = packed_queries_bytes,
    .pack_queries = pack_queries,
    .chunk_scratch_bytes = chunk_scratch_bytes,
    .key_grad_floats = key_grad_floats,
    .key_chunk = key_chunk,
    .store_key_grads = store_key_grads,
    .dq_block_floats = dq_block_floats,
    .reduce_dq = reduce_dq,
};

}  // namespace maskattn
