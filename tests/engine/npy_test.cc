#include "engine/formats/npy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace tandem {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string File(const std::string& header, const std::string& data, char version = 1) {
  std::string file("\x93NUMPY", 6);
  file.push_back(version);
  file.push_back('\0');
  file.push_back(static_cast<char>(header.size()));
  file.push_back('\0');
  if (version > 1) file.append(2, '\0');
  return file + header + data;
}

std::string Message(const std::string& file) {
  return std::string(ReadNpy(file).status().message());
}

TEST(Npy, WhatIsWrittenIsRead) {
  for (const Shape& shape : {Shape{}, Shape{3}, Shape{2, 3}, Shape{0, 4}}) {
    Tensor tensor(DType::kI16, shape);
    for (int64_t i = 0; i < tensor.num_elements(); ++i) tensor.data<int16_t>()[i] = i * 1000 - 2;
    const absl::StatusOr<std::string> file = WriteNpy(tensor);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ((file->size() - tensor.bytes()) % 64, 0u);
    const absl::StatusOr<Tensor> read = ReadNpy(*file);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->type(), tensor.type());
    EXPECT_TRUE(std::equal(read->data<int16_t>().begin(), read->data<int16_t>().end(),
                           std::as_const(tensor).data<int16_t>().begin()));
  }
}

TEST(Npy, ReadsWhatNumPyWrites) {
  const std::string data("\0\0\x80\x3f\0\0\0\xc0", 8);
  for (const char version : {1, 2, 3}) {
    const absl::StatusOr<Tensor> tensor = ReadNpy(
        File("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }    \n", data, version));
    ASSERT_TRUE(tensor.ok()) << tensor.status();
    EXPECT_EQ(tensor->shape(), (Shape{1, 2}));
    EXPECT_THAT(tensor->data<float>(), ElementsAre(1, -2));
  }
  const absl::StatusOr<Tensor> flags =
      ReadNpy(File("{'descr': '|b1', 'fortran_order': True, 'shape': (2,), }\n", "\x01\x07"));
  ASSERT_TRUE(flags.ok()) << flags.status();
  EXPECT_THAT(flags->data<bool>(), ElementsAre(true, true));
}

TEST(Npy, RefusesTheRest) {
  const std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n";
  EXPECT_THAT(Message(""), HasSubstr("not an .npy file"));
  EXPECT_THAT(Message(File(header, "1234567")), HasSubstr("needs 8 bytes of data, there are 7"));
  EXPECT_THAT(Message(File(header, "123456789")), HasSubstr("there are 9"));
  EXPECT_THAT(Message(File(header, "").substr(0, 20)), HasSubstr("a header of"));
  const auto with = [&](std::string_view from, std::string_view to) {
    std::string changed = header;
    changed.replace(changed.find(from), from.size(), to);
    return Message(File(changed, "12345678"));
  };
  EXPECT_THAT(with("<f4", ">f4"), HasSubstr("dtype '>f4'"));
  EXPECT_THAT(with("<f4", "|O8"), HasSubstr("dtype '|O8'"));
  EXPECT_THAT(with("'<f4'", "[('a', '<f4')]"), HasSubstr("structured"));
  EXPECT_THAT(with("(2,)", "(1099511627776, 1099511627776)"), HasSubstr("shape"));
  EXPECT_THAT(with("(2,)", "(99999999999999999999,)"), HasSubstr("malformed"));
  EXPECT_THAT(with("(2,)", "(-2,)"), HasSubstr("malformed"));
  EXPECT_THAT(with("(2,)", "(2"), HasSubstr("malformed"));
  EXPECT_THAT(with("(2,)", "(1,1,1,1,1,1,1,1,2)"), HasSubstr("dimensions"));
  EXPECT_THAT(with("False, 'shape': (2,)", "True, 'shape': (1, 2)"), HasSubstr("Fortran"));
  EXPECT_THAT(with("'shape'", "'other'"), HasSubstr("'other'"));
  EXPECT_THAT(with("'shape': (2,), ", ""), HasSubstr("lacks"));
  EXPECT_FALSE(WriteNpy(Tensor(DType::kBF16, {1})).ok());
}

}  // namespace
}  // namespace tandem
