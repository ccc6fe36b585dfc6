// A torch device "sim" (PrivateUse1) on a machine without an accelerator: host memory behind tensors that are on
// another device, operations that run on the CPU underneath, traffic and memory counted, failures on demand.
#include <torch/extension.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/Resize.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/Allocator.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/core/GeneratorForPrivateuseone.h>
#include <atomic>

static std::atomic<int64_t> g_ops{0}, g_to{0}, g_from{0}, g_to_bytes{0}, g_from_bytes{0}, g_live{0}, g_peak{0};

static std::atomic<int64_t> g_limit{INT64_MAX}, g_allocations{0}, g_failing{-1};

static thread_local int g_inside = 0;  // copies that an emulated operation makes are not traffic
struct Inside { Inside() { g_inside++; } ~Inside() { g_inside--; } };

struct SimAllocator final : c10::Allocator {
  static void del(void* p) { if (!p) return; auto* q = (size_t*)p - 8; g_live -= (int64_t)q[0]; free(q); }
  c10::DataPtr allocate(size_t n) override {
    if (!n) return {nullptr, nullptr, &del, c10::Device(c10::DeviceType::PrivateUse1, 0)};
    int64_t number = g_allocations++;
    TORCH_CHECK_WITH(OutOfMemoryError, number != g_failing && g_live + (int64_t)n <= g_limit,
                     "sim out of memory: ", n, " bytes wanted, ", g_live.load(), " in use");
    void* raw = nullptr; if (posix_memalign(&raw, 64, n + 64)) throw std::bad_alloc();
    ((size_t*)raw)[0] = n; g_live += n; int64_t l = g_live; if (l > g_peak) g_peak = l;
    void* p = (char*)raw + 64;
    return {p, p, &del, c10::Device(c10::DeviceType::PrivateUse1, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &del; }
  void copy_data(void* d, const void* s, size_t n) const override { memcpy(d, s, n); }
};
static SimAllocator g_alloc;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &g_alloc);

struct SimGuard final : c10::impl::DeviceGuardImplInterface {
  SimGuard() = default; explicit SimGuard(c10::DeviceType) {}
  c10::DeviceType type() const override { return c10::DeviceType::PrivateUse1; }
  c10::Device exchangeDevice(c10::Device) const override { return {type(), 0}; }
  c10::Device getDevice() const override { return {type(), 0}; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device d) const override { return c10::Stream(c10::Stream::DEFAULT, d); }
  c10::Stream exchangeStream(c10::Stream s) const override { return s; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, SimGuard);

struct SimHooks : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
};

static at::Tensor empty_mf(c10::IntArrayRef size, std::optional<at::ScalarType> dt, std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> mf) {
  return at::detail::empty_generic(size, &g_alloc, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dt), mf);
}
static at::Tensor empty_st(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dt, std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &g_alloc, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dt));
}
// a CPU tensor over the same memory
static at::Tensor host(const at::Tensor& t) {
  if (t.device().type() != c10::DeviceType::PrivateUse1) return t;
  auto o = at::TensorOptions().dtype(t.dtype()).device(at::kCPU);
  at::Tensor keep = t;
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), [keep](void*) {}, o, at::kCPU);
}
static at::Tensor copy_from(const at::Tensor& self, const at::Tensor& dst, bool) {
  bool a = self.is_privateuseone(), b = dst.is_privateuseone();
  if (!g_inside && !a && b) { g_to++; g_to_bytes += self.nbytes(); }
  if (!g_inside && a && !b) { g_from++; g_from_bytes += self.nbytes(); }
  host(dst).copy_(host(self));
  return dst;
}
static at::Tensor copy_from_resize(const at::Tensor& self, const at::Tensor& dst) { at::native::resize_(dst, self.sizes()); return copy_from(self, dst, false); }
static at::Tensor& set_src(at::Tensor& r, at::Storage s, int64_t off, c10::IntArrayRef size, c10::IntArrayRef stride) { return at::native::set_storage_cpu_(r, s, off, size, stride); }
static const at::Tensor& resize(const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> mf) { return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), mf); }
static at::Tensor to_sim(const at::Tensor& c) { auto r = at::empty(c.sizes(), c.options().device(c10::Device(c10::DeviceType::PrivateUse1, 0))); host(r).copy_(c); return r; }
static at::Tensor conv(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& b, c10::IntArrayRef st, c10::IntArrayRef pad, c10::IntArrayRef dil, bool tr, c10::IntArrayRef op, int64_t g) {
  TORCH_CHECK(x.is_privateuseone() && w.is_privateuseone(), "Expected all tensors to be on the same device in convolution");
  std::optional<at::Tensor> bias; if (b && b->defined()) { TORCH_CHECK(b->is_privateuseone(), "Expected all tensors to be on the same device in convolution (bias)"); bias = host(*b); }
  g_ops++;
  Inside inside;
  return to_sim(at::convolution(host(x), host(w), bias, st, pad, dil, tr, op, g));
}
static std::tuple<at::Tensor, at::Tensor, at::Tensor> conv_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& w, c10::IntArrayRef st, c10::IntArrayRef pad, c10::IntArrayRef dil, bool tr, c10::IntArrayRef op, int64_t g, std::array<bool, 3> wanted) {
  g_ops++;
  Inside inside;
  std::vector<int64_t> bias{tr ? w.size(1) * g : w.size(0)};
  auto [dx, dw, db] = at::convolution_backward(host(grad), host(x), host(w), c10::IntArrayRef(bias), st, pad, dil, tr, op, g, wanted);
  auto there = [](const at::Tensor& t) { return t.defined() ? to_sim(t) : t; };
  return {there(dx), there(dw), there(db)};
}
// One kernel, which holds no scores, as accelerators have it; composed of others where gradients are wanted.
static at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const std::optional<at::Tensor>& bias, double dropout, bool causal, std::optional<double> scale, bool grouped) {
  bool biased = bias && bias->defined();
  TORCH_CHECK(q.is_privateuseone() && k.is_privateuseone() && v.is_privateuseone() && (!biased || bias->is_privateuseone()), "Expected all tensors to be on the same device in attention");
  if (at::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad() || v.requires_grad() || (biased && bias->requires_grad())))
    return std::get<0>(at::_scaled_dot_product_attention_math(q, k, v, bias, dropout, causal, std::nullopt, scale, grouped));
  at::AutoDispatchBelowADInplaceOrView below;
  g_ops++;
  Inside inside;
  std::optional<at::Tensor> there; if (biased) there = host(*bias);
  return to_sim(at::scaled_dot_product_attention(host(q), host(k), host(v), there, dropout, causal, scale, grouped));
}
static at::Scalar local_scalar(const at::Tensor& t) { g_from++; g_from_bytes += t.nbytes(); return host(t).item(); }

static void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  g_ops++;
  const auto& schema = op.schema();
  auto n = schema.arguments().size();
  auto args = torch::jit::last(*stack, n);
  // same-device rule, as on an accelerator: other than 0-dim tensors and indices, no CPU tensors
  std::string name = schema.name();
  bool indexing = name.find("aten::index") == 0 || name.find("aten::_index_put") == 0;
  if (!indexing) for (auto& a : args) if (a.isTensor() && a.toTensor().defined()) {
    const auto& t = a.toTensor();
    if (!t.is_privateuseone() && t.dim() > 0) TORCH_CHECK(false, "Expected all tensors to be on the same device, but found sim:0 and ", t.device(), " in ", name);
  }
  Inside inside;
  at::native::cpu_fallback(op, stack);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse1, m) { m.impl("scaled_dot_product_attention", &attention); }
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("scaled_dot_product_attention", &attention);
  m.impl("empty.memory_format", &empty_mf);
  m.impl("empty_strided", &empty_st);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_resize);
  m.impl("view", &at::native::view);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("unfold", &at::native::unfold);
  m.impl("view_as_complex", &at::native::view_as_complex);
  m.impl("view_as_real", &at::native::view_as_real);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("set_.source_Storage_storage_offset", &set_src);
  m.impl("resize_", &resize);
  m.impl("convolution_overrideable", &conv);
  m.impl("convolution_backward_overrideable", &conv_backward);
  m.impl("_local_scalar_dense", &local_scalar);
}
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("stats", []() { return std::map<std::string, int64_t>{{"ops", g_ops}, {"to", g_to}, {"to_bytes", g_to_bytes}, {"from", g_from}, {"from_bytes", g_from_bytes}, {"live", g_live}, {"peak", g_peak}, {"allocations", g_allocations}, {"limit", g_limit}}; });
  m.def("reset", []() { g_ops = g_to = g_from = g_to_bytes = g_from_bytes = g_allocations = 0; g_peak = (int64_t)g_live; });
  m.def("limit", [](int64_t bytes) { g_limit = bytes; });       // what the device has
  m.def("fail", [](int64_t number) { g_failing = number; });    // the allocation since reset() that fails; -1: none
  m.def("hooks", []() { at::RegisterPrivateUse1HooksInterface(new SimHooks()); });
}
