import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.TreeMap;
import java.util.UUID;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import software.amazon.awssdk.auth.credentials.AwsBasicCredentials;
import software.amazon.awssdk.auth.credentials.StaticCredentialsProvider;
import software.amazon.awssdk.http.Protocol;
import software.amazon.awssdk.http.nio.netty.NettyNioAsyncHttpClient;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.cloudwatch.CloudWatchAsyncClient;
import software.amazon.awssdk.services.dynamodb.DynamoDbAsyncClient;
import software.amazon.awssdk.services.kinesis.KinesisAsyncClient;
import software.amazon.kinesis.common.ConfigsBuilder;
import software.amazon.kinesis.common.InitialPositionInStream;
import software.amazon.kinesis.common.InitialPositionInStreamExtended;
import software.amazon.kinesis.coordinator.Scheduler;
import software.amazon.kinesis.lifecycle.events.InitializationInput;
import software.amazon.kinesis.lifecycle.events.LeaseLostInput;
import software.amazon.kinesis.lifecycle.events.ProcessRecordsInput;
import software.amazon.kinesis.lifecycle.events.ShardEndedInput;
import software.amazon.kinesis.lifecycle.events.ShutdownRequestedInput;
import software.amazon.kinesis.metrics.NullMetricsFactory;
import software.amazon.kinesis.processor.ShardRecordProcessor;
import software.amazon.kinesis.retrieval.KinesisClientRecord;
import software.amazon.kinesis.retrieval.polling.PollingConfig;

/** Reads a stream with the KCL, which takes aggregates apart. Prints, sorted, how often what a pattern finds was read. */
public class Read {
    static final TreeMap<String, Integer> found = new TreeMap<>();
    static CountDownLatch left;
    static Pattern pattern;

    static class Processor implements ShardRecordProcessor {
        public void initialize(InitializationInput input) {}

        public void processRecords(ProcessRecordsInput input) {
            synchronized (found) {
                for (KinesisClientRecord record : input.records()) {
                    String text = StandardCharsets.UTF_8.decode(record.data()).toString();
                    Matcher matcher = pattern.matcher(text);
                    found.merge(matcher.find() ? matcher.group(1) : "nothing", 1, Integer::sum);
                    left.countDown();
                }
            }
            try {
                input.checkpointer().checkpoint();
            } catch (Exception failed) {
                System.err.println("no checkpoint: " + failed);
            }
        }

        public void leaseLost(LeaseLostInput input) {}

        public void shardEnded(ShardEndedInput input) {
            try {
                input.checkpointer().checkpoint();
            } catch (Exception failed) {
                System.err.println("no checkpoint at the end: " + failed);
            }
        }

        public void shutdownRequested(ShutdownRequestedInput input) {}
    }

    public static void main(String[] args) throws Exception {
        String stream = args[0];
        URI endpoint = URI.create("http://127.0.0.1:" + args[1]);
        left = new CountDownLatch(Integer.parseInt(args[2]));
        pattern = Pattern.compile(args[4]);
        StaticCredentialsProvider who = StaticCredentialsProvider.create(AwsBasicCredentials.create("local", "local"));
        Region region = Region.US_EAST_1;
        // The SDK speaks HTTP/2 to Kinesis unless told not to.
        KinesisAsyncClient kinesis = KinesisAsyncClient.builder()
            .httpClientBuilder(NettyNioAsyncHttpClient.builder().protocol(Protocol.HTTP1_1))
            .endpointOverride(endpoint).region(region).credentialsProvider(who).build();
        DynamoDbAsyncClient dynamo = DynamoDbAsyncClient.builder()
            .endpointOverride(endpoint).region(region).credentialsProvider(who).build();
        CloudWatchAsyncClient cloudwatch = CloudWatchAsyncClient.builder()
            .endpointOverride(endpoint).region(region).credentialsProvider(who).build();
        ConfigsBuilder configs = new ConfigsBuilder(
            stream, "reader", kinesis, dynamo, cloudwatch, UUID.randomUUID().toString(), Processor::new);
        Scheduler scheduler = new Scheduler(
            configs.checkpointConfig(),
            configs.coordinatorConfig().parentShardPollIntervalMillis(200).shardConsumerDispatchPollIntervalMillis(100),
            configs.leaseManagementConfig().failoverTimeMillis(1000).shardSyncIntervalMillis(500),
            configs.lifecycleConfig(),
            configs.metricsConfig().metricsFactory(new NullMetricsFactory()),
            configs.processorConfig(),
            configs.retrievalConfig()
                .initialPositionInStreamExtended(
                    InitialPositionInStreamExtended.newInitialPosition(InitialPositionInStream.TRIM_HORIZON))
                .retrievalSpecificConfig(new PollingConfig(stream, kinesis).idleTimeBetweenReadsInMillis(200)));
        Thread thread = new Thread(scheduler);
        thread.setDaemon(true);
        thread.start();
        boolean all = left.await(Integer.parseInt(args[3]), TimeUnit.SECONDS);
        Thread.sleep(2000); // whatever is read twice
        synchronized (found) {
            System.out.println(found);
        }
        System.out.flush();
        Runtime.getRuntime().halt(all ? 0 : 1);
    }
}
