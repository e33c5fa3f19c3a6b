// kinesis-mock on 127.0.0.1, on a port that the system chooses and that is printed on a line of its own.
// Ends when its standard input does. By itself it would bind every address, at a port for HTTPS and one for HTTP.
const net = require('net')
const path = require('path')
const PLAIN_PORT = 4568
const listen = net.Server.prototype.listen
net.Server.prototype.listen = function (port, done) {
  return listen.call(this, 0, '127.0.0.1', () => {
    if (port === PLAIN_PORT) console.log(this.address().port)
    done()
  })
}
for (const change of ['CREATE_STREAM', 'DELETE_STREAM', 'MERGE_SHARDS', 'SPLIT_SHARD']) process.env[change + '_DURATION'] = '5ms'
Object.assign(process.env, { KINESIS_MOCK_PLAIN_PORT: String(PLAIN_PORT), SHARD_LIMIT: '1000', LOG_LEVEL: 'ERROR' })
process.stdin.resume().on('end', () => process.kill(process.pid, 'SIGKILL'))
process.chdir(path.dirname(require.resolve('kinesis-local'))) // where it looks for its certificate
require('kinesis-local')
