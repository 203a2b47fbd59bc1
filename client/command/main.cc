#include "client/command/command.h"

int main(int argc, char** argv) {
  CLI::App app{"tandem: command line of a Tandem server"};
  app.require_subcommand(1);
  app.fallthrough();  // --server and --json may stand before or after the subcommand
  tandem::command::Session session;
  app.add_option("--server", session.server, "host:port of the server")
      ->envname("TANDEM_SERVER")
      ->capture_default_str();
  app.add_flag("--json", session.json, "print the responses as JSON, one a line");
  tandem::command::AddHealthCommand(app, session);
  tandem::command::AddModelCommands(app, session);
  tandem::command::AddAnalyzeCommand(app, session);
  tandem::command::AddActivationsCommand(app, session);
  tandem::command::AddInferCommand(app, session);
  tandem::command::AddTrainCommand(app, session);
  tandem::command::AddGenerateCommands(app, session);
  tandem::command::AddDistributionCommands(app, session);
  tandem::command::AddApproximateCommands(app, session);
  tandem::command::AddExampleCommands(app, session);
  tandem::command::AddEvaluateCommand(app, session);
  CLI11_PARSE(app, argc, argv);
  return session.exit_code;
}
