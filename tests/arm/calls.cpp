// SPDX-License-Identifier: BSD-3-Clause
//
// The CPU kernels behind pipes, for an emulator of another architecture: writes the name of its tier as a line,
// then reads one call after another from standard input and writes the results to standard output, all tensors
// contiguous.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/params.h"

namespace {

using namespace maskattn;

struct Call {
  int64_t backward, dtype, batch, heads_q, heads_kv, seqlen_q, seqlen_k, head_dim;
  int64_t has_queries, has_keys, has_bias, has_dlse;
  double scale;
};

using Bytes = std::vector<char>;

Bytes read(int64_t count) {
  Bytes bytes(count);
  if (std::fread(bytes.data(), 1, count, stdin) != bytes.size()) std::exit(1);
  return bytes;
}

void write(const Bytes& bytes) { std::fwrite(bytes.data(), 1, bytes.size(), stdout); }

// As many threads as there may be, one after another.
ThreadPool serial() {
  return {2, [](int64_t n, void (*work)(void*, int64_t), void* ctx) {
            for (int64_t i = 0; i < n; ++i) work(ctx, i);
          }};
}

// Tokens of one side of a call.
struct Side {
  int64_t batch, heads, seqlen, row_bytes;

  int64_t rows() const { return batch * heads * seqlen; }
  Bytes read_tensor() const { return read(rows() * row_bytes); }
  Bytes read_rows() const { return read(rows() * 4); }
  TensorView view(Bytes& t, DType dtype) const {
    const int64_t head_dim = row_bytes / element_size(dtype);
    return {t.data(), heads * seqlen * head_dim, seqlen * head_dim, head_dim};
  }
  RowView row_view(Bytes& t) const { return {reinterpret_cast<float*>(t.data()), heads * seqlen, seqlen, 1}; }
  SelectionView selection(Bytes& indices, Bytes& counts) const {
    return {reinterpret_cast<int32_t*>(indices.data()), heads * seqlen, seqlen,
            reinterpret_cast<int32_t*>(counts.data()),  heads,          1};
  }
};

void run(const Call& call) {
  const auto dtype = static_cast<DType>(call.dtype);
  const int64_t row_bytes = call.head_dim * element_size(dtype);
  const Side queries{call.batch, call.heads_q, call.seqlen_q, row_bytes};
  const Side keys{call.batch, call.heads_kv, call.seqlen_k, row_bytes};
  BackwardParams p;
  p.dtype = dtype, p.head_dim = static_cast<int>(call.head_dim), p.scale = static_cast<float>(call.scale);
  p.batch = call.batch, p.heads_q = call.heads_q, p.heads_kv = call.heads_kv;
  p.seqlen_q = call.seqlen_q, p.seqlen_k = call.seqlen_k;

  Bytes q = queries.read_tensor(), k = keys.read_tensor(), v = keys.read_tensor();
  p.q = queries.view(q, dtype), p.k = keys.view(k, dtype), p.v = keys.view(v, dtype);
  Bytes lists[4], bias, dlse;
  if (call.has_queries) {
    lists[0] = queries.read_rows(), lists[1] = read(call.batch * call.heads_q * 4);
    p.queries = queries.selection(lists[0], lists[1]);
  }
  if (call.has_keys) {
    lists[2] = keys.read_rows(), lists[3] = read(call.batch * call.heads_kv * 4);
    p.keys = keys.selection(lists[2], lists[3]);
  }
  if (call.has_bias) bias = keys.read_rows(), p.key_bias = keys.row_view(bias);

  if (!call.backward) {
    Bytes out(q.size()), lse(queries.rows() * 4);
    p.out = queries.view(out, dtype), p.lse = queries.row_view(lse);
    launch_cpu_fwd(p, serial());
    return write(out), write(lse);
  }
  Bytes dout = queries.read_tensor(), out = queries.read_tensor(), lse = queries.read_rows();
  p.dout = queries.view(dout, dtype), p.out = queries.view(out, dtype), p.lse = queries.row_view(lse);
  if (call.has_dlse) dlse = queries.read_rows(), p.dlse = queries.row_view(dlse);
  Bytes dq(q.size()), dk(k.size()), dv(v.size()), dbias(bias.size());
  p.dq = queries.view(dq, dtype), p.dk = keys.view(dk, dtype), p.dv = keys.view(dv, dtype);
  if (call.has_bias) p.dbias = keys.row_view(dbias);
  launch_cpu_bwd(p, serial());
  write(dq), write(dk), write(dv), write(dbias);
}

}  // namespace

int main() {
  std::printf("%s\n", cpu_tier());
  std::fflush(stdout);
  for (Call call; std::fread(&call, sizeof(call), 1, stdin) == 1;) {
    run(call);
    std::fflush(stdout);
  }
}
