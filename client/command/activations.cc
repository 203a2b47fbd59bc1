#include "client/command/command.h"
namespace tandem::command {
void AddActivationsCommand(CLI::App&, Session&) {}
}  // namespace tandem::command
