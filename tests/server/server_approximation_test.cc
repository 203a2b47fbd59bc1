// SamplingService.Approximate over a socket, and its messages.
#include <cmath>

#include "server/convert_approximation.h"
#include "tests/server/test_server.h"

namespace tandem::server {
namespace {

using testing::ElementsAre;

AverageOptions Average(const v1::Approximation& approximation) {
  auto options = FromProto(approximation);
  EXPECT_TRUE(options.ok()) << options.status();
  return std::get<AverageOptions>(*options);
}
IterationOptions Iteration(const v1::Approximation& approximation) {
  auto options = FromProto(approximation);
  EXPECT_TRUE(options.ok()) << options.status();
  return std::get<IterationOptions>(*options);
}
void ExpectLaw(const StepLaw& law, double scale, double offset, double exponent) {
  EXPECT_EQ(law.scale, scale);
  EXPECT_EQ(law.offset, offset);
  EXPECT_EQ(law.exponent, exponent);
}
void SetLaw(v1::StepLaw* law, double scale, double offset, double exponent) {
  law->set_scale(scale);
  law->set_offset(offset);
  law->set_exponent(exponent);
}

TEST(ConvertApproximationTest, Averages) {
  v1::Approximation a;
  EXPECT_EQ(FromProto(a).status().message(), "approximation.method is not set");
  a.mutable_mean();
  EXPECT_EQ(Average(a).kind, AverageKind::kMean);
  EXPECT_EQ(Average(a).dimension, 1);
  a.mutable_mean()->set_dimension(7);
  a.mutable_mean()->set_constant_step(0.5);
  EXPECT_EQ(Average(a).kind, AverageKind::kConstantStep);
  EXPECT_EQ(Average(a).dimension, 7);
  EXPECT_EQ(Average(a).step, 0.5);
  v1::ExponentialAverageMethod& e = *a.mutable_exponential_average();
  e.set_alpha(0.25);
  EXPECT_EQ(Average(a).kind, AverageKind::kExponential);
  EXPECT_EQ(Average(a).dimension, 1);
  EXPECT_EQ(Average(a).step, 0.25);
  EXPECT_TRUE(Average(a).bias_correction);
  e.set_dimension(3);
  e.set_initial(2);
  EXPECT_THAT(std::string(FromProto(a).status().message()),
              testing::HasSubstr("exponential_average.initial"));
  e.set_no_bias_correction(true);
  EXPECT_EQ(Average(a).dimension, 3);
  EXPECT_EQ(Average(a).initial, 2);
  EXPECT_FALSE(Average(a).bias_correction);
  a.mutable_quantile()->add_probabilities(0.5);
  a.mutable_quantile()->add_probabilities(0.75);
  EXPECT_THAT(std::get<QuantileOptions>(*FromProto(a)).probabilities, ElementsAre(0.5, 0.75));
}

template <typename Method>
void ExpectIterationFields(v1::Approximation& a, Method& method, IterationKind kind,
                           StepLaw default_step) {
  method.add_start(1);
  method.add_start(2);
  IterationOptions options = Iteration(a);
  EXPECT_EQ(options.kind, kind);
  EXPECT_THAT(options.start, ElementsAre(1, 2));
  EXPECT_TRUE(options.lower.empty() && options.upper.empty());
  EXPECT_FALSE(options.average);
  ExpectLaw(options.step, default_step.scale, default_step.offset, default_step.exponent);
  SetLaw(method.mutable_step(), 5, 6, 0.75);
  method.mutable_box()->add_lower(-1);
  method.mutable_box()->add_upper(3);
  method.mutable_box()->add_upper(4);
  method.mutable_average()->set_after(9);
  options = Iteration(a);
  ExpectLaw(options.step, 5, 6, 0.75);
  EXPECT_THAT(options.lower, ElementsAre(-1, -1)) << "one bound stands for all";
  EXPECT_THAT(options.upper, ElementsAre(3, 4));
  EXPECT_TRUE(options.average);
  EXPECT_EQ(options.average_after, 9);
}

TEST(ConvertApproximationTest, Iterations) {
  v1::Approximation a;
  ExpectIterationFields(a, *a.mutable_robbins_monro(), IterationKind::kRobbinsMonro, {1, 0, 1});
  ExpectIterationFields(a, *a.mutable_kiefer_wolfowitz(), IterationKind::kKieferWolfowitz,
                        {1, 0, 1});
  ExpectLaw(Iteration(a).difference, 1, 0, 1.0 / 6);
  SetLaw(a.mutable_kiefer_wolfowitz()->mutable_difference(), 2, 3, 0.25);
  ExpectLaw(Iteration(a).difference, 2, 3, 0.25);
  ExpectIterationFields(a, *a.mutable_spsa(), IterationKind::kSpsa, {0.1, 10, 0.602});
  ExpectLaw(Iteration(a).difference, 0.1, 0, 0.101);
  SetLaw(a.mutable_spsa()->mutable_difference(), 2, 3, 0.25);
  a.mutable_spsa()->set_seed(11);
  ExpectLaw(Iteration(a).difference, 2, 3, 0.25);
  EXPECT_EQ(Iteration(a).seed, 11u);
  ExpectIterationFields(a, *a.mutable_gradient_descent(), IterationKind::kGradient, {0.01, 0, 0});
}

TEST(ConvertApproximationTest, DescentRules) {
  v1::Approximation a;
  v1::GradientDescentMethod& method = *a.mutable_gradient_descent();
  method.add_start(0);
  EXPECT_EQ(Iteration(a).rule, DescentRule::kPlain);
  method.set_rule(v1::DESCENT_RULE_PLAIN);
  EXPECT_EQ(Iteration(a).rule, DescentRule::kPlain);
  method.set_momentum(0.5);
  EXPECT_EQ(FromProto(a).status().message(),
            "gradient_descent.momentum is set, but the rule has none");
  method.set_rule(v1::DESCENT_RULE_MOMENTUM);
  EXPECT_EQ(Iteration(a).rule, DescentRule::kMomentum);
  EXPECT_EQ(Iteration(a).momentum, 0.5);
  method.set_beta1(0.1);
  EXPECT_FALSE(FromProto(a).ok());
  method.clear_momentum();
  method.set_rule(v1::DESCENT_RULE_ADAM);
  method.set_beta2(0.2);
  method.set_epsilon(0.3);
  EXPECT_EQ(Iteration(a).rule, DescentRule::kAdam);
  EXPECT_EQ(Iteration(a).beta1, 0.1);
  EXPECT_EQ(Iteration(a).beta2, 0.2);
  EXPECT_EQ(Iteration(a).epsilon, 0.3);
  method.set_rule(static_cast<v1::DescentRule>(99));
  EXPECT_EQ(FromProto(a).status().message(), "gradient_descent.rule 99 is not a known DescentRule");
}

class ApproximateTest : public ServerTest {
 protected:
  // One stream: the responses to the requests, and how it ended.
  class Stream {
   public:
    explicit Stream(Sampling& stub) {
      context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
      stream_ = stub.Approximate(&context_);
    }
    v1::ApproximateResponse Ask(const v1::ApproximateRequest& request) {
      v1::ApproximateResponse response;
      EXPECT_TRUE(stream_->Write(request));
      EXPECT_TRUE(stream_->Read(&response));
      return response;
    }
    // The next observation.
    v1::ApproximateResponse Tell(int64_t step, const std::vector<double>& values) {
      v1::ApproximateRequest request;
      SetObservation(step, values, &request);
      return Ask(request);
    }
    grpc::Status AskInVain(const v1::ApproximateRequest& request) {
      v1::ApproximateResponse response;
      stream_->Write(request);
      EXPECT_FALSE(stream_->Read(&response));
      return stream_->Finish();
    }
    grpc::Status Close() {
      stream_->WritesDone();
      v1::ApproximateResponse response;
      EXPECT_FALSE(stream_->Read(&response));
      return stream_->Finish();
    }
    void Break() { context_.TryCancel(); }

   private:
    grpc::ClientContext context_;
    std::unique_ptr<grpc::ClientReaderWriter<v1::ApproximateRequest, v1::ApproximateResponse>>
        stream_;
  };

  static void SetObservation(int64_t step, const std::vector<double>& values,
                             v1::ApproximateRequest* request) {
    request->mutable_observation()->set_step(step);
    request->mutable_observation()->mutable_values()->Add(values.begin(), values.end());
  }
  static v1::ApproximateRequest Mean() {
    v1::ApproximateRequest request;
    request.mutable_approximation()->mutable_mean();
    return request;
  }
  static v1::ApproximateRequest Spsa() {
    v1::ApproximateRequest request;
    auto* spsa = request.mutable_approximation()->mutable_spsa();
    for (double x : {3.0, -1.0, 0.5}) spsa->add_start(x);
    spsa->mutable_average();
    return request;
  }
  static std::vector<double> Evaluate(const v1::ApproximateResponse& response) {
    std::vector<double> values;
    for (const auto& query : response.queries()) {
      double f = 0;
      for (double x : query.coordinates()) f += (x - 1) * (x - 1);
      values.push_back(f);
    }
    return values;
  }
};

TEST_F(ApproximateTest, AMeanOverTheNetwork) {
  Start();
  Stream stream(*sampling_);
  v1::ApproximateRequest first = Mean();
  SetObservation(0, {1, 2}, &first);
  v1::ApproximateResponse response = stream.Ask(first);
  EXPECT_EQ(response.step(), 1);
  EXPECT_EQ(response.observations(), 2);
  response = stream.Tell(1, {6});
  EXPECT_EQ(response.step(), 2);
  EXPECT_THAT(response.estimate(), ElementsAre(3));
  EXPECT_THAT(response.variance(), ElementsAre(testing::DoubleEq(7)));
  EXPECT_THAT(response.standard_error(), ElementsAre(testing::DoubleEq(std::sqrt(7.0 / 3))));
  EXPECT_EQ(response.step_size(), 0.25);
  EXPECT_FALSE(response.has_difference());
  EXPECT_FALSE(response.resume_token().empty());
  // A repeat gets the same answer.
  EXPECT_EQ(stream.Tell(1, {6}).SerializeAsString(), response.SerializeAsString());
  ASSERT_OK(stream.Close());
}

TEST_F(ApproximateTest, AMinimumOverTheNetwork) {
  Start();
  Stream stream(*sampling_);
  v1::ApproximateResponse response = stream.Ask(Spsa());
  EXPECT_EQ(response.step(), 0);
  ASSERT_EQ(response.queries_size(), 2);
  EXPECT_NEAR(response.queries(0).coordinates(0) - 3, 0.1, 0.2001);
  EXPECT_EQ(response.difference(), 0.1);
  EXPECT_EQ(response.average_size(), 0);
  for (int k = 0; k < 600; ++k) response = stream.Tell(k, Evaluate(response));
  for (double x : response.estimate()) EXPECT_NEAR(x, 1, 0.05);
  EXPECT_EQ(response.average_size(), 3);
  EXPECT_EQ(response.standard_error_size(), 3);
  ASSERT_OK(stream.Close());
}

TEST_F(ApproximateTest, SurvivesABrokenStreamAndARestartedServer) {
  Start();
  std::string expected;
  {
    Stream whole(*sampling_);
    v1::ApproximateResponse response = whole.Ask(Spsa());
    for (int k = 0; k < 30; ++k) response = whole.Tell(k, Evaluate(response));
    expected = response.SerializeAsString();
  }
  auto stream = std::make_unique<Stream>(*sampling_);
  v1::ApproximateResponse response = stream->Ask(Spsa());
  for (int k = 0; k < 30; ++k) {
    if (k % 10 == 5) {
      // The server hears the observation, but its answer is lost with the stream.
      const std::string token = response.resume_token();
      const std::vector<double> values = Evaluate(response);
      stream->Tell(k, values);
      stream->Break();
      stream = nullptr;
      if (k == 15) {
        server_ = nullptr;
        Start();
      }
      stream = std::make_unique<Stream>(*sampling_);
      v1::ApproximateRequest resume;
      resume.set_resume_token(token);
      if (k == 25) {  // with the observation at once
        SetObservation(k, values, &resume);
        response = stream->Ask(resume);
        continue;
      }
      response = stream->Ask(resume);
      EXPECT_EQ(response.step(), k);
    }
    response = stream->Tell(k, Evaluate(response));
  }
  EXPECT_EQ(response.SerializeAsString(), expected);
}

TEST_F(ApproximateTest, ErrorsEndTheStreamByName) {
  Start();
  v1::ApproximateRequest observation;
  SetObservation(0, {1}, &observation);
  EXPECT_STATUS(Stream(*sampling_).AskInVain(observation), INVALID_ARGUMENT,
                "the first request of a stream must carry");
  v1::ApproximateRequest nothing;
  nothing.mutable_approximation();
  EXPECT_STATUS(Stream(*sampling_).AskInVain(nothing), INVALID_ARGUMENT,
                "approximation.method is not set");
  v1::ApproximateRequest bad_option;
  bad_option.mutable_approximation()->mutable_quantile()->add_probabilities(2);
  EXPECT_STATUS(Stream(*sampling_).AskInVain(bad_option), INVALID_ARGUMENT,
                "probabilities[0] is 2");
  v1::ApproximateRequest bad_token;
  bad_token.set_resume_token("nonsense");
  EXPECT_STATUS(Stream(*sampling_).AskInVain(bad_token), INVALID_ARGUMENT, "resume token");
  const auto after_start = [&](const v1::ApproximateRequest& request) {
    Stream stream(*sampling_);
    stream.Ask(Mean());
    stream.Tell(0, {1});
    return stream.AskInVain(request);
  };
  EXPECT_STATUS(after_start(Mean()), INVALID_ARGUMENT, "only the first request");
  EXPECT_STATUS(after_start(v1::ApproximateRequest()), INVALID_ARGUMENT, "no observation");
  v1::ApproximateRequest other, gap, bad_value, overflow;
  SetObservation(0, {2}, &other);
  EXPECT_STATUS(after_start(other), ABORTED, "applied already, with other values");
  SetObservation(5, {2}, &gap);
  EXPECT_STATUS(after_start(gap), FAILED_PRECONDITION,
                "step 5, but the approximation is at step 1");
  SetObservation(1, {2, NAN}, &bad_value);
  EXPECT_STATUS(after_start(bad_value), INVALID_ARGUMENT, "observation[1] is nan");
  SetObservation(1, {-1e200}, &overflow);
  EXPECT_STATUS(after_start(overflow), OUT_OF_RANGE, "range of double");
}

}  // namespace
}  // namespace tandem::server
