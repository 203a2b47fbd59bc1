# Build stage: everything from Debian 13's packages.
FROM debian:trixie AS build
WORKDIR /src
COPY deploy/install-packages deploy/install-packages
RUN deploy/install-packages
COPY . .
RUN TANDEM_CMAKE_ARGS=-DTANDEM_TESTS=OFF deploy/build release tandem-server tandem
# The run stage's whole file system: the two programs and the libraries that they load.
RUN deploy/collect-image /image build/release/server/tandem-server build/release/client/tandem

# Run stage: no shell, no package manager, no root.
FROM scratch
COPY --from=build /image /
USER 10001:10001
VOLUME /models
EXPOSE 8500 9464
HEALTHCHECK --interval=5s --timeout=4s --start-period=10s --retries=3 \
  CMD ["/usr/bin/tandem", "health"]
ENTRYPOINT ["/usr/bin/tandem-server"]
CMD ["--models", "/models", "--listen", "0.0.0.0:8500", "--metrics-listen", "0.0.0.0:9464"]
