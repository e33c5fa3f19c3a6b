// kinesalite on 127.0.0.1, on a port that the system chooses and that is printed on a line of its own.
// Ends when its standard input does.
const kinesalite = require('kinesalite')
const server = kinesalite({ createStreamMs: 5, deleteStreamMs: 5, updateStreamMs: 5, shardLimit: 1000 })
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
process.stdin.resume().on('end', () => process.exit(0))
