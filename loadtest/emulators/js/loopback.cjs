// Loaded before kinesis-local, which would listen on fixed ports of all interfaces: here it listens on loopback, on
// ports that the system chooses, and says which one it got for the port that its settings call 1.
const { Server } = require("node:net");

const listen = Server.prototype.listen;
Server.prototype.listen = function (port, ...rest) {
  if (port === 1) {
    this.once("listening", () => console.log(`Running on http://127.0.0.1:${this.address().port}`));
  }
  return listen.call(this, 0, "127.0.0.1", ...rest);
};
