#include "engine/formats/onnx_context.h"

#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_tensor.h"

namespace tandem {

using onnx::AttributeProto;

NodeContext::NodeContext(Builder& builder, const onnx::NodeProto& node, int64_t opset,
                         std::vector<Value> inputs, const Callbacks& callbacks,
                         const AttributeMap* references)
    : b(builder),
      node_(node),
      opset_(opset),
      inputs_(std::move(inputs)),
      callbacks_(callbacks),
      references_(references) {}

const AttributeProto* NodeContext::Find(std::string_view name) const {
  for (const AttributeProto& attribute : node_.attribute()) {
    if (attribute.name() != name) continue;
    if (attribute.ref_attr_name().empty()) return &attribute;
    if (references_ == nullptr) return &attribute;
    const auto it = references_->find(attribute.ref_attr_name());
    return it == references_->end() ? nullptr : it->second;
  }
  return nullptr;
}

const AttributeProto* NodeContext::Ask(std::string_view name,
                                       onnx::AttributeProto_AttributeType type) {
  asked_.emplace(name);
  const AttributeProto* attribute = Find(name);
  if (attribute == nullptr) return nullptr;
  if (attribute->type() == type) return attribute;
  // IR versions 1 and 2 need not give the type.
  const bool untyped = attribute->type() == AttributeProto::UNDEFINED;
  const bool matches =
      untyped && ((type == AttributeProto::INT && attribute->has_i()) ||
                  (type == AttributeProto::FLOAT && attribute->has_f()) ||
                  (type == AttributeProto::STRING && attribute->has_s()) ||
                  (type == AttributeProto::TENSOR && attribute->has_t()) ||
                  (type == AttributeProto::INTS && attribute->ints_size() > 0) ||
                  (type == AttributeProto::FLOATS && attribute->floats_size() > 0));
  if (matches) return attribute;
  if (attribute_error_.ok()) {
    attribute_error_ =
        InvalidArgument("attribute '", name, "' is of type ",
                        onnx::AttributeProto_AttributeType_Name(attribute->type()), ", expected ",
                        onnx::AttributeProto_AttributeType_Name(type));
  }
  return nullptr;
}

int64_t NodeContext::Int(std::string_view name, int64_t otherwise) {
  const AttributeProto* attribute = Ask(name, AttributeProto::INT);
  return attribute == nullptr ? otherwise : attribute->i();
}

double NodeContext::Float(std::string_view name, double otherwise) {
  const AttributeProto* attribute = Ask(name, AttributeProto::FLOAT);
  return attribute == nullptr ? otherwise : attribute->f();
}

std::string NodeContext::String(std::string_view name, std::string_view otherwise) {
  const AttributeProto* attribute = Ask(name, AttributeProto::STRING);
  return attribute == nullptr ? std::string(otherwise) : attribute->s();
}

std::vector<int64_t> NodeContext::Ints(std::string_view name) {
  const AttributeProto* attribute = Ask(name, AttributeProto::INTS);
  if (attribute == nullptr) return {};
  return {attribute->ints().begin(), attribute->ints().end()};
}

std::vector<double> NodeContext::Floats(std::string_view name) {
  const AttributeProto* attribute = Ask(name, AttributeProto::FLOATS);
  if (attribute == nullptr) return {};
  return {attribute->floats().begin(), attribute->floats().end()};
}

std::vector<std::string> NodeContext::Strings(std::string_view name) {
  const AttributeProto* attribute = Ask(name, AttributeProto::STRINGS);
  if (attribute == nullptr) return {};
  return {attribute->strings().begin(), attribute->strings().end()};
}

const onnx::TensorProto* NodeContext::TensorAttribute(std::string_view name) {
  const AttributeProto* attribute = Ask(name, AttributeProto::TENSOR);
  return attribute == nullptr ? nullptr : &attribute->t();
}

const onnx::GraphProto* NodeContext::GraphAttribute(std::string_view name) {
  const AttributeProto* attribute = Ask(name, AttributeProto::GRAPH);
  return attribute == nullptr ? nullptr : &attribute->g();
}

absl::Status NodeContext::RequireInt(std::string_view name, int64_t value) {
  const int64_t found = Int(name, value);
  if (found == value) return absl::OkStatus();
  return Unimplemented("attribute ", name, "=", found, " is not supported (", value, " is)");
}

absl::StatusOr<const Tensor*> NodeContext::ConstantInput(int i, std::string_view what) const {
  if (!Has(i)) return InvalidArgument("input ", i, " (", what, ") is missing");
  const Tensor* tensor = b.constant(In(i));
  if (tensor != nullptr) return tensor;
  return Unimplemented("input ", i, " (", what,
                       ") decides shapes, so it must be constant or follow from shapes; '",
                       node_.input(i), "' does not");
}

absl::StatusOr<std::vector<int64_t>> NodeContext::ConstantInts(int i, std::string_view what) const {
  TANDEM_ASSIGN_OR_RETURN(const Tensor* tensor, ConstantInput(i, what));
  if (IsFloat(tensor->dtype()) || tensor->shape().rank() > 1) {
    return InvalidArgument("input ", i, " (", what, ") is ", tensor->type().ToString(),
                           ", expected a list of integers");
  }
  std::vector<int64_t> values(tensor->num_elements());
  for (size_t k = 0; k < values.size(); ++k) values[k] = ElementAsInt(*tensor, k);
  return values;
}

absl::StatusOr<std::vector<double>> NodeContext::ConstantFloats(int i,
                                                                std::string_view what) const {
  TANDEM_ASSIGN_OR_RETURN(const Tensor* tensor, ConstantInput(i, what));
  if (tensor->shape().rank() > 1) {
    return InvalidArgument("input ", i, " (", what, ") is ", tensor->type().ToString(),
                           ", expected a list of numbers");
  }
  std::vector<double> values(tensor->num_elements());
  for (size_t k = 0; k < values.size(); ++k) values[k] = ElementAsDouble(*tensor, k);
  return values;
}

absl::StatusOr<std::optional<std::vector<int64_t>>> NodeContext::IntsAttributeOrInput(
    std::string_view name, int i, int64_t since) {
  if (opset_ < since) {
    if (!HasAttribute(name)) return std::nullopt;
    return Ints(name);
  }
  if (!Has(i)) return std::nullopt;
  return ConstantInts(i, name);
}

Value NodeContext::Int64s(std::span<const int64_t> values) {
  return b.Constant(Tensor::Of<int64_t>({static_cast<int64_t>(values.size())}, values));
}

Outputs NodeContext::FromProto(const onnx::TensorProto& proto) {
  TANDEM_ASSIGN_OR_RETURN(std::shared_ptr<const Tensor> tensor, callbacks_.read_constant(proto));
  return One(b.Constant(std::move(tensor)));
}

absl::Status NodeContext::CheckAttributes() const {
  TANDEM_RETURN_IF_ERROR(attribute_error_);
  for (const AttributeProto& attribute : node_.attribute()) {
    if (!asked_.contains(attribute.name())) {
      return Unimplemented("attribute '", attribute.name(), "' is not supported");
    }
  }
  return absl::OkStatus();
}

}  // namespace tandem
