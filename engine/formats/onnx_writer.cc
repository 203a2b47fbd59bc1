#include "engine/formats/onnx_writer.h"

#include "engine/formats/onnx_proto.h"

namespace tandem {
namespace {

void SetType(onnx::ValueInfoProto* info, std::string_view name, const std::vector<int64_t>& dims) {
  info->set_name(std::string(name));
  auto* type = info->mutable_type()->mutable_tensor_type();
  type->set_elem_type(onnx::TensorProto::FLOAT);
  for (size_t i = 0; i < dims.size(); ++i) {
    auto* dim = type->mutable_shape()->add_dim();
    if (dims[i] >= 0) {
      dim->set_dim_value(dims[i]);
    } else {
      dim->set_dim_param("dim" + std::to_string(i));
    }
  }
}

}  // namespace

OnnxWriter::OnnxWriter(int64_t opset) : model_(std::make_unique<onnx::ModelProto>()) {
  model_->set_ir_version(8);
  model_->add_opset_import()->set_version(opset);
  model_->mutable_graph()->set_name("graph");
}
OnnxWriter::~OnnxWriter() = default;

void OnnxWriter::Input(std::string_view name, const std::vector<int64_t>& dims) {
  SetType(model_->mutable_graph()->add_input(), name, dims);
}
void OnnxWriter::Output(std::string_view name, const std::vector<int64_t>& dims) {
  SetType(model_->mutable_graph()->add_output(), name, dims);
}

void OnnxWriter::Weights(std::string_view name, const std::vector<int64_t>& dims,
                         const std::vector<float>& values) {
  onnx::TensorProto* tensor = model_->mutable_graph()->add_initializer();
  tensor->set_name(std::string(name));
  tensor->set_data_type(onnx::TensorProto::FLOAT);
  for (const int64_t dim : dims) tensor->add_dims(dim);
  tensor->set_raw_data(values.data(), values.size() * sizeof(float));
}

void OnnxWriter::Node(std::string_view op, const std::vector<std::string>& inputs,
                      const std::vector<std::string>& outputs,
                      const std::vector<Attribute>& attributes) {
  onnx::NodeProto* node = model_->mutable_graph()->add_node();
  node->set_op_type(std::string(op));
  node->set_name(outputs.empty() ? std::string(op) : outputs[0]);
  for (const std::string& input : inputs) node->add_input(input);
  for (const std::string& output : outputs) node->add_output(output);
  for (const Attribute& a : attributes) {
    onnx::AttributeProto* attribute = node->add_attribute();
    attribute->set_name(a.name);
    switch (a.kind) {
      case Attribute::Kind::kInt:
        attribute->set_type(onnx::AttributeProto::INT);
        attribute->set_i(a.number);
        break;
      case Attribute::Kind::kInts:
        attribute->set_type(onnx::AttributeProto::INTS);
        for (const int64_t each : a.numbers) attribute->add_ints(each);
        break;
      case Attribute::Kind::kString:
        attribute->set_type(onnx::AttributeProto::STRING);
        attribute->set_s(a.text);
        break;
    }
  }
}

std::string OnnxWriter::Bytes() const { return model_->SerializeAsString(); }

}  // namespace tandem
